"""Messages of a conversation, checked at the door: what a template is shown is plain JSON and nothing else."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.errors import RequestError
from coterie.runtime.request import check_encodable
from coterie.runtime.template_process import CHARACTERS

Messages = Sequence[Mapping[str, Any]]


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """Each message as a dictionary of its own, without the keys that are None; `RequestError` names the first fault.

    A message has a role; what else it must have is the template's to say.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise _refused("messages", messages, "a sequence of messages like {'role': 'user', 'content': 'text'}")
    if not messages:
        raise RequestError("messages is empty, expected at least one message", code="request_messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise _refused(f"messages[{index}]", message, "an object like {'role': 'user', 'content': 'text'}")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise _refused(f"messages[{index}]['role']", role, "a text such as 'user', 'assistant' or 'system'")
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    found: list[dict[str, Any]] = as_json("messages", plain)
    return found


def as_json(name: str, value: Any) -> Any:
    """`value` as JSON holds it, a copy; `RequestError` where it cannot: other types, cycles, NaN, lone surrogates."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{name} is not JSON ({str(error)[:200]}), expected texts, numbers, true, false, null, lists and objects",
            code=f"request_{name}",
        ) from None
    if len(text) > CHARACTERS:
        raise RequestError(
            f"{name} has {len(text):,} characters as JSON, expected at most {CHARACTERS:,}", code=f"request_{name}"
        )
    check_encodable(name, text)
    return json.loads(text)


def _refused(name: str, value: Any, expected: str) -> RequestError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return RequestError(f"{name} is {shown}, expected {expected}", code="request_messages")

"""Chat templates: from messages to the one text that a model was trained on.

Where a checkpoint keeps them, the first that is there: chat_template.jinja; tokenizer_config.json, "chat_template", a
text or a list of named ones; chat_template.json, "chat_template". They are Jinja, with what transformers gives them:
messages, tools, documents, add_generation_prompt, the special tokens by name (bos_token ...), raise_exception,
strftime_now, tojson, loop controls and the generation tag.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from coterie.checkpoint import Checkpoint
from coterie.errors import ConfigError, RequestError, UnsupportedError
from coterie.runtime.messages import Messages, as_json, checked_messages
from coterie.runtime.template_process import TemplateProcess
from coterie.runtime.tokenizer import read_lenient_object

MAX_TEMPLATE = 1_000_000
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
_DEFAULT, _FOR_TOOLS = "default", "tool_use"


class ChatTemplate:
    """The templates of a model, by name; of several, "tool_use" is taken for tools and "default" otherwise.

    sources: {name: text of the template}. A template is a program of whoever made the checkpoint: it runs in a process
    of its own, in Jinja's sandbox, with a budget of time and memory, and cannot reach a file.
    """

    def __init__(self, sources: Mapping[str, str], *, tokens: Mapping[str, str], where: str = "chat template") -> None:
        """`tokens` are the special tokens by name: {"bos_token": "<s>", ...}; `where` names the file in errors."""
        self.sources = dict(sources)
        self._tokens = dict(tokens)
        self._where = where
        self._processes = {name: TemplateProcess(text, where) for name, text in self.sources.items()}

    def render(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text for `messages`, each {"role": ..., "content": ...} and whatever else the template knows.

        add_generation_prompt: end with what comes before a reply. tools: JSON schemas of functions. variables: whatever
        else the template reads, such as {"enable_thinking": False}. All of it is plain JSON.

        `RequestError` for messages that are none, or that the template refuses or fails on; `ConfigError` for a
        template that is none or reaches out of its sandbox; `CapacityError` for one that takes more than its budget.
        """
        shown = {
            **self._tokens,
            **_checked_variables(variables),
            "messages": checked_messages(messages),
            "tools": as_json("tools", tools),
            "documents": as_json("documents", documents),
            "add_generation_prompt": bool(add_generation_prompt),
        }
        return self._processes[self._name_for(tools)].render(shown)

    def _name_for(self, tools: Any) -> str:
        name = _FOR_TOOLS if tools is not None and _FOR_TOOLS in self.sources else _DEFAULT
        if name not in self.sources:
            raise UnsupportedError(
                f"{self._where}: found the chat templates {', '.join(sorted(self.sources))[:200]}, expected one named "
                f"'{_DEFAULT}'; rename the one to use",
                code="template_name",
            )
        return name


def _checked_variables(variables: Any) -> dict[str, Any]:
    if variables is None:
        return {}
    if not isinstance(variables, Mapping):
        raise RequestError(
            f"variables is a {type(variables).__name__}, expected a mapping of names to values",
            code="request_variables",
        )
    for name in variables:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or name in (*_RESERVED, "self"):
            raise RequestError(
                f"variables has the name {str(name)[:60]!r}, expected a name of its own, without a leading underscore",
                code="request_variables",
            )
    found: dict[str, Any] = as_json("variables", dict(variables))
    return found


def read_chat_template(checkpoint: Checkpoint) -> ChatTemplate | None:
    """The checkpoint's templates, None if it has none; `ConfigError` for what is there and is no text."""
    config = read_lenient_object(checkpoint, "tokenizer_config.json")
    tokens = _special_tokens({**read_lenient_object(checkpoint, "special_tokens_map.json"), **config})
    name = "chat_template.jinja"
    content = checkpoint.read_member(name, MAX_TEMPLATE)
    if content is not None:
        return ChatTemplate({_DEFAULT: _decoded(content, f"{checkpoint.path / name}")}, tokens=tokens, where=name)
    legacy = "chat_template.json"
    for file, fields in (("tokenizer_config.json", config), (legacy, read_lenient_object(checkpoint, legacy))):
        sources = _sources(fields.get("chat_template"), f"{checkpoint.path / file}")
        if sources:
            return ChatTemplate(sources, tokens=tokens, where=file)
    return None


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}: found byte {error.start} that is not UTF-8, expected UTF-8 text; the file is damaged",
            code="template_not_utf8",
        ) from None


def _sources(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        value = [{"name": _DEFAULT, "template": value}]
    sources: dict[str, str] = {}
    for entry in value if isinstance(value, list) else [value]:
        name = entry.get("name") if isinstance(entry, dict) else None
        text = entry.get("template") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(text, str) or name in sources or len(text) > MAX_TEMPLATE:
            raise ConfigError(
                f'{where}: "chat_template" is {str(value)[:60]!a}, expected a text of at most {MAX_TEMPLATE:,} '
                'characters, or a list of {"name", "template"} with different names; correct it',
                code="template_type",
            )
        sources[name] = text
    return sources


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Every "..._token" of tokenizer_config.json, and the extra ones that are named there.

    Older checkpoints have some in special_tokens_map.json alone; tokenizer_config.json goes first, also with a null.
    """
    extra = config.get("extra_special_tokens")
    named = {**config, **(extra if isinstance(extra, dict) else {})}
    tokens = {}
    for name, value in named.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and name.isidentifier() and isinstance(text, str):
            tokens[name] = text
    return tokens

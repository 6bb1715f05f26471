"""Rules about chat templates, and the last rule of all: does `coterie.load` take it?"""

from collections.abc import Iterator
from dataclasses import replace

from coterie.doctor.evidence import Evidence
from coterie.doctor.findings import Level, Symptom
from coterie.doctor.registry import rule
from coterie.doctor.wording import listed, plain

_TEMPLATE = "chat_template.jinja"
_TURNS = ("<|im_start|>", "<start_of_turn>", "<|turn>", "<|start|>", "<|user|>", "<|start_header_id|>", "[INST]")
"""Tokens that only chats have."""


@rule(Level.WARNING, "tokenizer")
def chat_template_missing(evidence: Evidence) -> Iterator[Symptom]:
    """The tokenizer has tokens for the turns of a chat, and no file has a template, so readers make one up or take text
    as it is."""
    assert evidence.tokenizer is not None
    turns = [token for token in _TURNS if evidence.tokenizer.id_of(token) is not None]
    if turns and not evidence.chat_templates and "chat_template" not in evidence.refused:
        found = f"no template, and the tokens {listed(turns)}"
        yield Symptom(_TEMPLATE, found, f"{_TEMPLATE}, or one in tokenizer_config.json", "fetch it from the original")


@rule(Level.ERROR)
def chat_template_refused(evidence: Evidence) -> Iterator[Symptom]:
    """A chat template cannot be read. A warning where the text can be read and is no template, or where the file is not
    the one that counts. Templates are parsed to see that, never run."""
    yield from evidence.refused.get("chat_template", ())
    for symptom in evidence.refused.get("other_template", ()):
        yield replace(symptom, level=Level.WARNING, cause=None)
    for where, template in evidence.chat_templates.items():
        problem = _problem(template)
        if problem is not None:
            yield Symptom(where, problem, "a Jinja template", "fetch it from the original", Level.WARNING)


@rule(Level.WARNING)
def chat_templates_differ(evidence: Evidence) -> Iterator[Symptom]:
    """Two files have different chat templates, and readers take either."""
    (first, one), *others = list(evidence.chat_templates.items()) or [("", "")]
    for where, other in others:
        if other.strip() != one.strip():
            yield Symptom(where, f"another template than {first}", "the same in both", "keep the true one in both")


def _problem(template: str) -> str | None:
    """Why the text is no template; None where it is one."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    known = ["jinja2.ext.loopcontrols"]
    text = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    try:
        ImmutableSandboxedEnvironment(extensions=known).parse(text)
    except TemplateError as error:
        return f"a text that Jinja refuses ({plain(str(error), 100)})"
    except RecursionError:
        return "a text that is nested without end"
    return None


@rule(Level.ERROR)
def load_refused(evidence: Evidence) -> Iterator[Symptom]:
    """`coterie.load` refuses the checkpoint for a reason that no other rule names."""
    yield from evidence.refused.get("load", ())

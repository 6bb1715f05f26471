"""Chat templates say what they say in transformers, and are found where checkpoints keep them."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import coterie
from coterie.checkpoint import open_checkpoint
from coterie.errors import ConfigError, RequestError, UnsupportedError
from coterie.runtime import Model, load
from coterie.runtime.chat_template import ChatTemplate, read_chat_template
from coterie.runtime.template_process import TemplateProcess
from models import tiny
from runtime.templates_made import CONVERSATIONS, TEMPLATES, TOKENS, WEATHER, said

EOS = {"eos_token": "<e>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that the tests may add files to."""
    copy = tmp_path_factory.mktemp("templates") / "model"
    shutil.copytree(tiny.checkpoint("qwen3_moe", "4 bits g64"), copy)
    return copy


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """The same tokenizer in transformers."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **TOKENS)


@pytest.fixture(scope="module")
def ours() -> dict[str, ChatTemplate]:
    return {name: ChatTemplate({"default": text}, tokens=TOKENS) for name, text in TEMPLATES.items()}


@pytest.mark.parametrize("options", [{}, {"tools": [WEATHER]}, {"add_generation_prompt": False}], ids=str)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(
    name: str, conversation: str, options: dict[str, Any], ours: dict[str, ChatTemplate], reference: Any
) -> None:
    messages = CONVERSATIONS[conversation]
    expected = reference.apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=False, **{"add_generation_prompt": True, **options}
    )
    assert ours[name].render(messages, **options) == expected
    assert expected


def test_variables_and_parts_and_missing_content(ours: dict[str, ChatTemplate], reference: Any) -> None:
    parts = [{"role": "user", "content": [{"type": "image", "url": None}, {"type": "text", "text": " what? "}]}]
    nothing = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": []}]
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("chatml", said("x"), {"enable_thinking": False}),
        ("gpt_oss", said("x"), {"reasoning_effort": "high"}),
        ("gemma", parts, {}),
        ("chatml", nothing, {}),
    ]
    for name, messages, variables in cases:
        expected = reference.apply_chat_template(
            messages, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True, **variables
        )
        assert ours[name].render(messages, variables=variables) == expected


def test_a_template_may_refuse_messages(ours: dict[str, ChatTemplate]) -> None:
    with pytest.raises(RequestError, match="user and assistant must take turns, found user") as refused:
        ours["llama"].render([*said("a"), *said("b")])
    assert refused.value.code == "template_refused"
    assert ours["llama"].render(said("a")).endswith("assistant<|end|>\n\n")


def test_ids_are_those_of_transformers_and_the_first_token_comes_once(folder: Path, reference: Any) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATES["deepseek"])
    try:
        model = load(folder)
    finally:
        (folder / "chat_template.jinja").unlink()
    messages = said("def f(): <eos> é", "yes", "x", system="s")
    expected = reference.apply_chat_template(
        messages, chat_template=TEMPLATES["deepseek"], add_generation_prompt=True, return_dict=False
    )
    found = model.apply_chat_template(messages)
    assert found == expected
    assert found[0] == 2
    assert found.count(2) == 1
    # A special token in a message is that token, as in transformers.
    assert found.count(1) == 2
    made = model.chat(messages, max_tokens=5)
    assert made.token_ids == model.generate(found, max_tokens=5).token_ids
    assert made.n_prompt_tokens == len(found)


def test_the_bundled_model_has_no_template() -> None:
    model = coterie.load()
    assert model.chat_template is None
    with pytest.raises(UnsupportedError) as refused:
        model.chat(said("x"))
    assert refused.value.code == "no_chat_template"


# Where templates are -------------------------------------------------------------------------------------------------


def read(folder: Path, **files: Any) -> ChatTemplate | None:
    """The template of a checkpoint with these files: a text as it is, anything else as JSON."""
    names = {
        "jinja": "chat_template.jinja",
        "config": "tokenizer_config.json",
        "legacy": "chat_template.json",
        "map": "special_tokens_map.json",
    }
    before = {name: (folder / name).read_bytes() for name in names.values() if (folder / name).exists()}
    try:
        for key, value in files.items():
            data = value if isinstance(value, bytes) else (value if key == "jinja" else json.dumps(value)).encode()
            (folder / names[key]).write_bytes(data)
        with open_checkpoint(folder, scan=False) as checkpoint:
            return read_chat_template(checkpoint)
    finally:
        for name in names.values():
            (folder / name).unlink(missing_ok=True)
            if name in before:
                (folder / name).write_bytes(before[name])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"jinja": "a", "config": {"chat_template": "b"}, "legacy": {"chat_template": "c"}}, "a"),
        ({"config": {"chat_template": "b"}, "legacy": {"chat_template": "c"}}, "b"),
        ({"legacy": {"chat_template": "c"}}, "c"),
        ({"config": {"chat_template": [{"name": "x", "template": "d"}, {"name": "default", "template": "e"}]}}, "e"),
        ({"config": {"chat_template": "{{ bos_token }}{{ eos_token }}{{ image_token }}|", **TOKENS}}, "<bos><eos>|"),
        ({"config": {"chat_template": "{{ eos_token }}", "eos_token": {"content": "<e>"}}}, "<e>"),
        (
            {"config": {"chat_template": "{{ image_token }}", "extra_special_tokens": {"image_token": "<i>"}}},
            "<i>",
        ),
        (
            {
                "config": {"chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token }}", "bos_token": None, **EOS},
                "map": {"bos_token": "<b>", "eos_token": "<x>", "pad_token": {"content": "<p>"}},
            },
            "<e><p>",
        ),
        ({"config": {"chat_template": "ok", "model_max_length": 10**30}}, "ok"),
    ],
)
def test_where_a_template_is_found(folder: Path, files: dict[str, Any], expected: str) -> None:
    template = read(folder, **files)
    assert template is not None
    assert template.render(said("x")) == expected


def test_without_any_there_is_none(folder: Path) -> None:
    assert read(folder, config={}) is None
    assert read(folder, config={"chat_template": None}) is None


def test_the_one_for_tools_is_taken_for_tools(folder: Path) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t{{ tools | length }}"}]
    template = read(folder, config={"chat_template": named})
    assert template is not None
    assert template.render(said("x")) == "d"
    assert template.render(said("x"), tools=[WEATHER]) == "t1"
    assert template.render(said("x"), tools=[]) == "t0"
    lonely = read(folder, config={"chat_template": named[1:]})
    assert lonely is not None
    with pytest.raises(UnsupportedError, match="tool_use"):
        lonely.render(said("x"))


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"jinja": b"a\xff"}, "template_not_utf8"),
        ({"config": {"chat_template": 5}}, "template_type"),
        ({"config": {"chat_template": {"name": "default"}}}, "template_type"),
        ({"config": {"chat_template": [["default", "x"]]}}, "template_type"),
        ({"config": {"chat_template": [{"name": "a", "template": "x"}] * 2}}, "template_type"),
        ({"config": {"chat_template": "x" * 1_000_001}}, "template_type"),
        ({"config": b'{"chat_template": "x"'}, "config_not_json"),
        ({"config": [1]}, "config_type"),
        ({"legacy": b"\xff"}, "config_not_json"),
        ({"legacy": {"chat_template": ["x"]}}, "template_type"),
    ],
)
def test_what_is_no_template_is_refused(folder: Path, files: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(folder, **files)
    assert refused.value.code == code


# What is put in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "hello",
        {"role": "user"},
        5,
        [],
        ["hello"],
        [{}],
        [{"content": "x"}],
        [{"role": 5}],
        [{"role": ""}],
        [{"role": "user", "content": b"x"}],
        [{"role": "user", "content": float("nan")}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": {1, 2}}],
        [{"role": "user", "content": "x" * 16_000_001}],
    ],
)
def test_messages_that_are_none_are_refused(messages: Any, ours: dict[str, ChatTemplate]) -> None:
    with pytest.raises(RequestError):
        ours["chatml"].render(messages)


def test_a_conversation_that_contains_itself_is_refused(ours: dict[str, ChatTemplate]) -> None:
    message: dict[str, Any] = {"role": "user"}
    message["content"] = [message]
    with pytest.raises(RequestError):
        ours["chatml"].render([message])


@pytest.mark.parametrize(
    "variables",
    [5, {"messages": []}, {"add_generation_prompt": 1}, {"self": 1}, {"_x": 1}, {"a b": 1}, {1: 2}, {"a": b""}],
)
def test_variables_that_cannot_be_are_refused(variables: Any, ours: dict[str, ChatTemplate]) -> None:
    with pytest.raises(RequestError):
        ours["chatml"].render(said("x"), variables=variables)


def test_one_process_serves_many_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = TemplateProcess._start
    monkeypatch.setattr(TemplateProcess, "_start", lambda self: (started.append(1), start(self))[1])
    template = ChatTemplate({"default": TEMPLATES["chatml"]}, tokens={})
    texts = {template.render(said(str(index))) for index in range(20)}
    assert len(texts) == 20
    assert started == [1]


def test_a_template_can_be_rendered_from_threads() -> None:
    template = ChatTemplate({"default": TEMPLATES["gemma"]}, tokens=TOKENS)
    expected = {index: template.render(said("x" * index)) for index in range(8)}
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=index: found.update({i: template.render(said("x" * i))})) for index in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_generation_takes_a_rendered_conversation(folder: Path) -> None:
    model: Model = load(folder)
    model.chat_template = ChatTemplate({"default": TEMPLATES["chatml"]}, tokens={})
    assert (
        "".join(model.stream(model.apply_chat_template(said("x")), max_tokens=3))
        == model.chat(said("x"), max_tokens=3).text
    )

"""Templates that run away, ask for gigabytes, or reach for what is not theirs: each ends in an error, and soon."""

import gc
import os
import signal
import subprocess
import sys

import pytest

from coterie.errors import CapacityError, ConfigError, RequestError, UnsupportedError
from coterie.runtime import template_process
from coterie.runtime.chat_template import ChatTemplate
from coterie.runtime.template_process import TemplateProcess
from runtime.templates_made import said

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def rendered(text: str) -> str:
    return ChatTemplate({"default": text}, tokens={}).render(said("x"))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x' * 10**9 }}",
        "{% set x = 'x' * 10**8 %}{{ x * 10 }}",
        "{% set n = 10**9 %}{{ [0] * n }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ ('a' * 20000).replace('a', 'b' * 100000) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% for i in range(10**9) %}{% endfor %}",
        LOOP,
        LOOP.replace("{% endfor %}{% endfor %}", "xxxxxxxxxx{% endfor %}{% endfor %}"),
        "{{ range(99999) | map('string') | join(',') * 1000 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ (7 ** 9999999) % 3 }}{{ (7 ** 99999999) % 3 }}",
        "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
        "{{ " + "+".join(["1"] * 20_000) + " }}",
        "{{ lipsum(n=1000000) }}",
    ],
    ids=lambda text: str(text)[:60],
)
def test_it_ends_within_its_budget(text: str) -> None:
    with pytest.raises(CapacityError) as refused:
        rendered(text)
    assert refused.value.code == "template_budget"
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.sys }}",
        "{{ ('{0.__class__.__mro__}').format(1).x.y }}",
        "{{ (messages | attr('__class__')).x }}",
        "{{ ([messages] | map(attribute='__class__') | first).x.y }}",
        "{{ self._TemplateReference__context.x }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ ''.format_map.__self__.x }}",
        "{{ strftime_now.__globals__['json'].codecs }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.mro() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
    ],
)
def test_what_it_reaches_for_it_does_not_get(text: str) -> None:
    with pytest.raises((ConfigError, RequestError)) as refused:
        rendered(text)
    assert refused.value.code in ("template_unsafe", "template_failed")


def test_attributes_that_lead_out_print_nothing() -> None:
    for text in ("{{ ''.__class__ }}", "{{ '{0.__class__}'.format(1) }}", "{{ messages | attr('__class__') }}"):
        assert rendered(text) == ""


@pytest.mark.parametrize("text", ["{% if %}", "{{", "{% for x in y %}", "{{ 1 | nofilter }}", "{% generation %}"])
def test_what_is_no_template_says_where(text: str) -> None:
    with pytest.raises(ConfigError, match="line 1") as refused:
        rendered(text)
    assert refused.value.code == "template_syntax"


@pytest.mark.parametrize("text", ["{{ foo.bar }}", "{{ 1 / 0 }}", "{{ messages[7].role }}", "{{ foo | tojson }}"])
def test_what_fails_on_the_messages_is_said(text: str) -> None:
    with pytest.raises(RequestError) as refused:
        rendered(text)
    assert refused.value.code == "template_failed"


def test_filters_work_where_no_file_can_be_opened() -> None:
    text = "{{ [1] | pprint }}{{ 'a b' | wordwrap(1) }}{{ lipsum(1) | length > 1 }}{{ 'a b' | urlencode }}"
    text += "{{ 1.5 | round }}"
    assert rendered(text) == "[1]a\nbTruea%20b2.0"
    assert rendered("{{ {'b': 1, 'a': 'é<'} | tojson }}|{{ 'x' | upper | indent }}") == '{"b": 1, "a": "é<"}|X'


def test_after_a_runaway_the_next_rendering_is_whole() -> None:
    text = "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}fine"
    template = ChatTemplate({"default": text}, tokens={})
    for _ in range(2):
        assert template.render(said("x")) == "fine"
        with pytest.raises(CapacityError):
            template.render(said("loop"))
    assert template.render(said("x")) == "fine"


def test_a_process_that_was_killed_is_started_again() -> None:
    process = TemplateProcess("{{ messages }}", "t")
    assert process.render({"messages": 1}) == "1"
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    with pytest.raises(CapacityError):
        process.render({"messages": 2})
    assert process.render({"messages": 3}) == "3"


def test_the_process_ends_with_its_template() -> None:
    process = TemplateProcess("x", "t")
    process.render({})
    child = process._process
    assert child is not None
    del process
    gc.collect()
    assert child.poll() is not None


def test_the_process_knows_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    process = TemplateProcess("x", "t")
    process.render({})
    assert process._process is not None
    if sys.platform == "linux":
        with open(f"/proc/{process._process.pid}/environ", "rb") as file:
            assert b"secret" not in file.read()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the limits of another process")
def test_the_process_can_open_no_file_and_is_bounded_in_memory() -> None:
    process = TemplateProcess("x", "t")
    process.render({})
    assert process._process is not None
    with open(f"/proc/{process._process.pid}/limits") as file:
        limits = {line[:26].strip(): line[26:].split()[:2] for line in file}
    assert limits["Max open files"] == ["3", "3"]
    assert limits["Max file size"] == ["0", "0"]
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max address space"] == [str(template_process.MEMORY)] * 2


def test_without_a_python_to_start_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("", "/no/such/python", "/bin/false"):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(UnsupportedError) as refused:
            rendered("x")
        assert refused.value.code == "template_process"


def test_the_process_ends_when_its_program_is_killed() -> None:
    code = (
        "import os, signal\nfrom coterie.runtime.template_process import TemplateProcess\n"
        "p = TemplateProcess('x', 't'); p.render({}); print(p._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    pid = int(killed.stdout)
    for _ in range(200):
        if not is_running(pid):
            return
        signal.sigtimedwait((), 0.05)
    raise AssertionError(f"process {pid} still runs")


def is_running(pid: int) -> bool:
    """Not ended, nor ended and only waiting to be collected."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

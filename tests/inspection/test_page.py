"""The page: whole without a network, basic without a script, and deaf to what models and texts try to tell it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from coterie.inspect import Report
from coterie.inspect.colour import STEPS, diverging, octaves, sequential, step
from coterie.inspect.page import page
from inspection.traces import layer, trace

MAY_HAVE_NO_END = {"meta", "line", "rect", "tr", "td", "th", "option"}


class Reader(HTMLParser):
    """Tags with their attributes, and the text of each tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.texts.append((self.tags[-1][0], data))


@pytest.fixture
def report(rng: np.random.Generator) -> Report:
    layers = (layer(rng, 1, 90, 8, 2), layer(rng, 2, 90, 16, 4, unused=(5, 6)), layer(rng, 4, 90, 8, 1))
    return Report.of(trace(rng, *layers, n_layers=6), least=2)


def test_nothing_comes_from_elsewhere(report: Report) -> None:
    made = Reader(page(report))
    loading = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction"}
    assert [(tag, attrs) for tag, attrs in made.tags if loading & attrs.keys()] == []
    assert {"link", "iframe", "object", "embed", "img", "base", "form"} & {tag for tag, _ in made.tags} == set()
    text = page(report)
    assert re.findall(r"@import|https?:(?!//www\.w3\.org/2000/svg)|url\((?!#)", text) == []


def test_the_policy_allows_the_one_script_and_no_request(report: Report) -> None:
    text = page(report)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src 'none'" in policy
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "innerHTML" not in script
    assert "eval" not in script


def test_text_of_models_and_inputs_stays_text(report: Report) -> None:
    made = Reader(page(report))
    assert [tag for tag, _ in made.tags].count("script") == 2
    assert "b" not in [tag for tag, attrs in made.tags if tag == "b" and attrs]
    assert ("h1", "Experts of a <b>model</b>") in [(tag, text) for tag, text in made.texts]
    assert any(tag == "span" and text == "<script>alert(1)</script>" for tag, text in made.texts)
    assert not [text for _, text in made.texts if "\x1b" in text or "\u202e" in text]


def test_the_data_is_json_that_agrees_with_the_report(report: Report) -> None:
    (data,) = re.findall(r'id="data">(.*?)</script>', page(report, layer=2), re.DOTALL)
    assert "<" not in data
    value = json.loads(data)
    assert value["shown"] == 1
    assert value["tokens"] == 90
    for found, embedded in zip(report.layers, value["layers"], strict=True):
        assert embedded["counts"] == found.counts.tolist()
        assert embedded["k"] == found.source.top_k
        ids = np.frombuffer(base64.b64decode(embedded["ids"]), "<u2").reshape(-1, found.source.top_k)
        np.testing.assert_array_equal(ids, found.source.ids)
        lift = np.frombuffer(base64.b64decode(embedded["lift"]), np.int8)
        assert len(lift) == found.n_experts * (found.n_experts - 1) // 2
        exact = found.log_lift()[np.triu_indices(found.n_experts, 1)]
        said = np.isfinite(exact)
        np.testing.assert_allclose(lift[said] / 16, exact[said], atol=1 / 32 + 1e-9)
        assert (lift[np.isnan(exact)] == -128).all()
        assert (lift[np.isneginf(exact)] == -127).all()


def test_without_the_script_loads_table_and_strip_are_there(report: Report) -> None:
    made = Reader(page(report))
    titles = [text for tag, text in made.texts if tag == "title"]
    cells = [title for title in titles if title.startswith("layer ")]
    assert len(cells) == 8 + 16 + 8
    assert "layer 2, expert 5: 0 tokens, 0.00×" in cells
    for found in report.layers:
        for expert, n in enumerate(found.counts.tolist()):
            title = f"layer {found.layer}, expert {expert}: {n} tokens, {found.relative[expert]:.2f}×"
            assert title in cells
    assert len([attrs for tag, attrs in made.tags if tag == "span" and "--e" in (attrs.get("style") or "")]) == 90
    assert sum(text == "no experts" for _, text in made.texts) == 3


def test_scales_are_even_and_their_ends_equally_light() -> None:
    for theme in ("light", "dark"):
        for colours in (diverging(theme), sequential(theme)):
            assert len(set(colours)) == len(colours) == STEPS
            assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
        luminance = [_luminance(colour) for colour in diverging(theme)]
        middle = STEPS // 2
        fall = [abs(y - luminance[middle]) for y in luminance]
        assert fall[:middle] == sorted(fall[:middle], reverse=True)
        assert fall[middle:] == sorted(fall[middle:])
        ramp = [_luminance(colour) for colour in sequential(theme)]
        assert ramp == sorted(ramp, reverse=theme == "light")


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_steps_of_the_scale() -> None:
    assert [step(value, 3) for value in (-9.0, -3.0, 0.0, 3.0, 9.0)] == [0, 0, STEPS // 2, STEPS - 1, STEPS - 1]
    assert octaves(np.array([0.1, -0.9, -np.inf, np.nan])) == 1
    assert octaves(np.array([-1.9, 1.5])) == 2
    assert octaves(np.array([-7.0, 5.0])) == 3
    assert octaves(np.array([np.nan])) == 1

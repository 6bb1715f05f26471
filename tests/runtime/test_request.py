"""What a caller may not ask for: each refusal is a `RequestError` that names the field."""

from typing import Any

import numpy as np
import pytest

from coterie.errors import RequestError
from coterie.runtime.request import MAX_STOP_LENGTH, MAX_STOPS, Request, checked, checked_ids

GOOD: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 1.0,
    "top_k": 3,
    "top_p": 0.9,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {3: 1.0},
    "logprobs": 2,
    "seed": 1,
    "stop": ("x",),
}
NAN, INF, HUGE = float("nan"), float("inf"), 10**400

BAD: dict[str, list[Any]] = {
    "max_tokens": [None, "5", True, 1.0, 0, -1, 65, 2**31, 2**63, HUGE, NAN, [], ""],
    "temperature": [None, "1", True, -1e-9, -1, NAN, INF, -INF, HUGE, [], 1j],
    "top_k": [None, "5", True, 2.0, -1, 101, 2**31, 2**63, HUGE, NAN, [3]],
    "top_p": [None, "0.5", True, 0, 0.0, -0.1, 1 + 1e-9, 2, NAN, INF, HUGE, []],
    "min_p": [None, "0.5", True, -1e-9, 1 + 1e-9, 2, NAN, INF, HUGE, []],
    "repetition_penalty": [None, "1", True, 0, 0.0, -1.0, 1e-7, 2e6, NAN, INF, -INF, HUGE, 1j],
    "presence_penalty": [None, "1", False, 2e6, -2e6, NAN, INF, -INF, HUGE, []],
    "frequency_penalty": [None, "1", True, 2e6, -2e6, NAN, INF, -INF, HUGE, {}],
    "logit_bias": [
        [(1, 2.0)],
        "1=2",
        5,
        {"1": 2.0},
        {1.0: 2.0},
        {True: 1.0},
        {-1: 1.0},
        {100: 1.0},
        {2**70: 1.0},
        {None: 1.0},
        {1: None},
        {1: "2"},
        {1: True},
        {1: NAN},
        {1: INF},
        {1: HUGE},
        {1: 2e6},
        {2: 0.0, 1: -2e6},
        dict.fromkeys(range(100), -INF),
    ],
    "logprobs": ["5", True, 1.0, -1, 101, 2**31, HUGE, NAN, []],
    "skip_special_tokens": [None, 0, 1, "yes", []],
    "seed": ["1", True, 1.0, -1, 2**64, 2**70, HUGE, NAN, []],
    "stop": [
        None,
        5,
        [1],
        [""],
        "",
        [None],
        ["a", "b" * (MAX_STOP_LENGTH + 1)],
        "c" * 1_000_000,
        ["d"] * (MAX_STOPS + 1),
        ["d"] * 10_000,
        ["\ud83c"],
        "\udf89",
        b"bytes",
        {"a"},
        {"a": 1},
    ],
}


def request(**changed: Any) -> Request:
    return checked({**GOOD, **changed}, vocab_size=100, context_length=64)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in BAD for value in BAD[field]])
def test_a_bad_field_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as refused:
        request(**{field: value})
    assert refused.value.code.startswith("request_")
    assert str(refused.value).startswith(field)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("max_tokens", 1, 1),
        ("max_tokens", 64, 64),
        ("max_tokens", np.int64(7), 7),
        ("temperature", 0, 0.0),
        ("temperature", 1e-300, 1e-300),
        ("temperature", 1e300, 1e300),
        ("temperature", np.float64(0.5), 0.5),
        ("top_k", 0, 0),
        ("top_k", 100, 100),
        ("top_p", 1, 1.0),
        ("top_p", 5e-324, 5e-324),
        ("min_p", 0, 0.0),
        ("min_p", 1, 1.0),
        ("repetition_penalty", 1e-6, 1e-6),
        ("repetition_penalty", 1_000_000, 1e6),
        ("presence_penalty", -1e6, -1e6),
        ("frequency_penalty", np.float64(2), 2.0),
        ("logit_bias", None, ()),
        ("logit_bias", {}, ()),
        ("logit_bias", {np.int64(99): 5, 0: -INF}, ((99, 5.0), (0, -INF))),
        ("logit_bias", dict.fromkeys(range(99), -INF), tuple((i, -INF) for i in range(99))),
        ("logprobs", None, None),
        ("logprobs", 0, 0),
        ("logprobs", 100, 100),
        ("seed", None, None),
        ("seed", 0, 0),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("stop", (), ()),
        ("stop", "end", ("end",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", "e" * MAX_STOP_LENGTH, ("e" * MAX_STOP_LENGTH,)),
    ],
)
def test_the_borders_of_what_is_allowed(field: str, value: Any, kept: Any) -> None:
    assert getattr(request(**{field: value}), field) == kept


def test_what_is_left_out_is_the_default() -> None:
    assert checked({}, vocab_size=100, context_length=64) == Request()


def test_an_option_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(RequestError) as refused:
        request(temprature=1.0)
    assert refused.value.code == "request_unknown"
    assert "expected temperature" in str(refused.value)


@pytest.mark.parametrize(
    "ids",
    [[], [-1], [100], [2**70], [1.0], ["1"], [True], [None], "12", b"12", 7, None, [1] * 65, iter(lambda: 3, None)],
)
def test_token_ids_that_are_none_are_refused(ids: Any) -> None:
    with pytest.raises(RequestError):
        checked_ids(ids, 100, 64)


@pytest.mark.parametrize("ids", [[0], [99] * 64, (1, 2), np.array([3, 4], np.uint32), range(5)])
def test_token_ids_of_any_integers(ids: Any) -> None:
    found = checked_ids(ids, 100, 64)
    assert found == [int(i) for i in ids]
    assert all(type(i) is int for i in found)

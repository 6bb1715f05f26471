"""Launches that are remembered: which go past Triton's search, and with what."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")


class _Compiled:
    """A compiled kernel that notes what it is given."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return lambda *arguments: self.calls.append((grid, arguments))


class _Kernel:
    """A kernel whose search makes a new compiled one for each launch."""

    arg_names = ("x", "n", "pair", "SIZE", "KIND")

    def __init__(self) -> None:
        self.found: list[_Compiled] = []

    def __getitem__(self, _grid: tuple[int, ...]) -> Any:
        def search(*_arguments: Any, **_options: Any) -> _Compiled:
            self.found.append(_Compiled())
            return self.found[-1]

        return search


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`launch` as on a GPU; nothing is remembered yet."""
    from coterie.backends.cuda import launch as module

    monkeypatch.setattr(module.INTERPRETED, "value", False)
    monkeypatch.setattr(module, "_current_device", lambda: 0)
    monkeypatch.setattr(module, "_forms", {})
    return module.launch


def test_a_launch_like_an_earlier_one_goes_past_the_search(launch: Any) -> None:
    kernel, x, y = _Kernel(), torch.zeros(64), torch.ones(64)
    launch(kernel, (3,), x, 7, (x, 2), KIND="dense", SIZE=16, num_warps=4)
    launch(kernel, (5, 2), y, 7, (x, 2), KIND="dense", SIZE=16, num_warps=4)
    (compiled,) = kernel.found
    # Addresses stand for tensors, and arguments by name come in the kernel's order, without options.
    assert compiled.calls == [((5, 2, 1), (y.data_ptr(), 7, (x.data_ptr(), 2), 16, "dense"))]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {"x": x[1:]},
        lambda x: {"x": x.half()},
        lambda _: {"n": 8},
        lambda x: {"pair": (x, 3)},
        lambda x: {"pair": (x.int(), 2)},
        lambda x: {"pair": (x, 2, 2)},
        lambda _: {"SIZE": 32},
        lambda _: {"num_warps": 8},
        lambda _: {"maxnreg": 64},
    ],
)
def test_any_other_is_searched_for(launch: Any, change: Any) -> None:
    kernel, x = _Kernel(), torch.zeros(64)
    given = {"x": x, "n": 7, "pair": (x, 2), "SIZE": 16, "KIND": "dense", "num_warps": 4}
    for options in (given, {**given, **change(x)}):
        launch(kernel, (3,), options.pop("x"), options.pop("n"), options.pop("pair"), **options)
    assert [len(compiled.calls) for compiled in kernel.found] == [0, 0]


def test_kernels_and_devices_do_not_mix(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.backends.cuda import launch as module

    one, other, x = _Kernel(), _Kernel(), torch.zeros(16)
    launch(one, (1,), x)
    launch(other, (1,), x)
    monkeypatch.setattr(module, "_current_device", lambda: 1)
    launch(one, (1,), x)
    assert (len(one.found), len(other.found)) == (2, 1)


def test_what_was_only_compiled_is_not_remembered(launch: Any) -> None:
    class Searched:
        arg_names = ("x",)
        n_searches = 0

        def __getitem__(self, _grid: Any) -> Any:
            def search(*_arguments: Any) -> None:
                self.n_searches += 1

            return search

    kernel, x = Searched(), torch.zeros(16)
    for _ in range(3):
        launch(kernel, (1,), x)
    assert kernel.n_searches == 3


def test_few_are_remembered(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.backends.cuda import launch as module

    monkeypatch.setattr(module, "_MOST_KNOWN", 4)
    kernel, x = _Kernel(), torch.zeros(16)
    for n in range(9):
        launch(kernel, (1,), x, n)
        assert all(len(form.known) <= 4 for form in module._forms.values())

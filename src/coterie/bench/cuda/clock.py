"""Work on the device, recorded once as a CUDA graph and played again between two events."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from coterie.backends.cuda.launch import INTERPRETED, recorded

Work = Callable[[], Any]


def device() -> torch.device:
    """Where the kernels run: the current GPU, or the host where the interpreter stands in for it."""
    return torch.device("cpu") if INTERPRETED.value else torch.device("cuda", torch.cuda.current_device())


class Recording:
    """`work` as a CUDA graph. `is_graph` is False where it is called as it is: work that waits for the device cannot be
    recorded, and on the host there are no graphs.
    """

    def __init__(self, work: Work, place: torch.device) -> None:
        self._on_gpu = place.type == "cuda"
        work()  # compiles kernels, which nobody can record
        self._play, self.is_graph = work, False
        if not self._on_gpu:
            return
        torch.cuda.synchronize(place)
        if not _waits(work):
            graph = torch.cuda.CUDAGraph()
            with recorded(graph):
                work()
            self._play, self.is_graph = graph.replay, True
        self._play()
        torch.cuda.synchronize(place)

    def seconds(self, n_plays: int = 1) -> float:
        """Seconds of one play, in the mean of so many in a row."""
        if not self._on_gpu:
            start = time.perf_counter()
            self._repeat(n_plays)
            return (time.perf_counter() - start) / n_plays
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # One play ahead keeps the device busy until everything that is timed stands in its queue.
        self._play()
        begin.record()
        self._repeat(n_plays)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / n_plays

    def _repeat(self, n_plays: int) -> None:
        for _ in range(n_plays):
            self._play()


def _waits(work: Work) -> bool:
    """Whether the work waits for the device. Found out before it is recorded: a recording that fails leaves PyTorch's
    generators and allocator behind in a state of recording.
    """
    before = torch.cuda.get_sync_debug_mode()
    try:
        _refuse_waiting("error")
        work()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        _refuse_waiting(before)
    return False


def _refuse_waiting(mode: int | str) -> None:
    """PyTorch's debug mode for waits; that it is a prototype, of which PyTorch warns, is no news for users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode(mode)

"""Compilation with a disk cache that notices a change in any file of this package.

Numba stamps a cached function with its own source file only. Our kernels are assembled from several files (the emitters
are called while Numba compiles), so a change in an emitter would go unnoticed and a stale kernel would run. Here the
stamp is the digest of every source file of the back end.
"""

import functools
import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import _CacheLocator

_PACKAGE = Path(__file__).parent
_LOGGER = logging.getLogger("coterie")


@functools.cache
def source_digest() -> str:
    """SHA-256 over the names and contents of all Python files of the CPU back end."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _Stamped:
    """A cache locator of Numba's with the package's digest as the stamp of its source."""

    def __init__(self, locator: _CacheLocator) -> None:
        self._locator = locator

    def get_source_stamp(self) -> str:
        return source_digest()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._locator, name)


def _enable_cache(compiled: Any) -> None:
    """Cache a dispatcher or a callback on disk, where there is a place that may be written to."""
    try:
        compiled.enable_caching()
    except RuntimeError:
        _tell_of_no_cache()
        return
    cache = compiled._cache
    cache._impl._locator = _Stamped(cache._impl._locator)
    # The index file holds the stamp it was made with; Numba reads it when the cache object is made.
    cache._cache_file._source_stamp = source_digest()


@functools.cache
def _tell_of_no_cache() -> None:
    _LOGGER.warning(
        "there is no folder for compiled kernels that may be written to, so every run compiles them again; "
        "set NUMBA_CACHE_DIR to one"
    )


def njit(function: Callable[..., Any], *, fastmath: set[str] | bool = False) -> Any:
    """`numba.njit`, without the GIL, cached on disk under the package's stamp; `fastmath` names LLVM's flags."""
    dispatcher = numba.njit(function, nogil=True, error_model="numpy", fastmath=fastmath)
    _enable_cache(dispatcher)
    return dispatcher


def compile_callback(signature: Any, function: Callable[..., Any]) -> Any:
    """Compile `function` to a C callback, or load it from the disk cache; keep the result while `.address` is used.

    It may be bound to integers only. By what it is bound to it is found again in the cache, and a compiled function has
    another name in every process: bound to one, it would be compiled by every process anew.
    """
    assert all(isinstance(cell.cell_contents, int) for cell in function.__closure__ or ()), function
    from numba.core.ccallback import CFunc
    from numba.core.sigutils import normalize_signature

    callback = CFunc(
        function, normalize_signature(signature), locals={}, options={"error_model": "numpy", "nogil": True}
    )
    _enable_cache(callback)
    begin = time.perf_counter()
    callback.compile()
    if not callback.cache_hits:
        _tell_of(time.perf_counter() - begin)
    return callback


_compiling_seconds = 0.0
_told = False


def _tell_of(seconds: float) -> None:
    """Say once why the first call is slow, when compiling has taken more than a second."""
    global _compiling_seconds, _told
    _compiling_seconds += seconds
    if _compiling_seconds > 1 and not _told:
        _told = True
        _LOGGER.warning(
            "compiling kernels for this machine; later runs load them from the cache (coterie.warmup() compiles ahead)"
        )

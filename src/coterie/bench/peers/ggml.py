"""The few functions of ggml that a mixture layer needs, out of the shared libraries that llama-cpp-python brings.

Handles are integers. ggml ends the process where it is misused: callers give it valid shapes only.
"""

import ctypes as c
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from coterie.bench.entrants import RefusedError

F32, I32 = 0, 26
_NODE_BYTES = 512
_NODES = 256


class _InitParams(c.Structure):
    _fields_ = (("mem_size", c.c_size_t), ("mem_buffer", c.c_void_p), ("no_alloc", c.c_bool))


_P, _I, _S = c.c_void_p, c.c_int64, c.c_size_t
_LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_log_set": (None, [_LOG, _P]),
    "ggml_init": (_P, [_InitParams]),
    "ggml_free": (None, [_P]),
    "ggml_tensor_overhead": (_S, []),
    "ggml_graph_overhead": (_S, []),
    "ggml_new_graph": (_P, [_P]),
    "ggml_build_forward_expand": (None, [_P, _P]),
    "ggml_nbytes": (_S, [_P]),
    "ggml_new_tensor_2d": (_P, [_P, c.c_int, _I, _I]),
    "ggml_new_tensor_3d": (_P, [_P, c.c_int, _I, _I, _I]),
    "ggml_view_2d": (_P, [_P, _P, _I, _I, _S, _S]),
    "ggml_mul_mat_id": (_P, [_P, _P, _P, _P]),
    "ggml_mul": (_P, [_P, _P, _P]),
    "ggml_add": (_P, [_P, _P, _P]),
    "ggml_swiglu_split": (_P, [_P, _P, _P]),
    "ggml_geglu_split": (_P, [_P, _P, _P]),
    "ggml_swiglu_oai": (_P, [_P, _P, _P, c.c_float, c.c_float]),
    "ggml_backend_alloc_ctx_tensors": (_P, [_P, _P]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_P, [_P, _P]),
    "ggml_backend_buffer_free": (None, [_P]),
    "ggml_backend_buft_name": (c.c_char_p, [_P]),
    "ggml_backend_cpu_buffer_type": (_P, []),
    "ggml_backend_free": (None, [_P]),
    "ggml_backend_graph_compute": (c.c_int, [_P, _P]),
    "ggml_backend_reg_dev_get": (_P, [_P, _S]),
    "ggml_backend_reg_get_proc_address": (_P, [_P, c.c_char_p]),
    "ggml_backend_tensor_set": (None, [_P, _P, _S, _S]),
    "ggml_backend_tensor_get": (None, [_P, _P, _S, _S]),
    "ggml_backend_cpu_init": (_P, []),
    "ggml_backend_cpu_reg": (_P, []),
    "ggml_backend_cpu_set_n_threads": (None, [_P, c.c_int]),
}


@cache
def library() -> Any:
    """The functions as attributes, typed. llama-cpp-python is found, not imported: that would load a model runtime."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ImportError("No module named 'llama_cpp'; pip install llama-cpp-python builds it")
    folder = Path(spec.origin).parent / "lib"
    loaded = []
    for name in ("ggml-base", "ggml-cpu", "ggml"):
        paths = sorted([*folder.glob(f"lib{name}.so"), *folder.glob(f"lib{name}.dylib")])
        if not paths:
            raise RefusedError(f"llama-cpp-python has no lib{name} in its folder lib")
        loaded.append(c.CDLL(str(paths[0]), mode=c.RTLD_GLOBAL))
    return _Functions(loaded)


class _Functions:
    log_set: Any

    def __init__(self, libraries: list[c.CDLL]) -> None:
        for name, (result, arguments) in _SIGNATURES.items():
            function = next((getattr(library, name) for library in libraries if hasattr(library, name)), None)
            if function is None:
                raise RefusedError(f"this version of llama.cpp has no {name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)
        # It reports every tensor that it stores; the callback must live as long as the library.
        self._silent = _LOG(lambda _level, _text, _data: None)
        self.log_set(self._silent, None)


def new_context() -> int:
    """A context that holds no data, for a graph of some hundred nodes."""
    g = library()
    size = _NODES * max(_NODE_BYTES, g.tensor_overhead()) + g.graph_overhead()
    return int(g.init(_InitParams(size, None, True)))


def repacking_buffers() -> int | None:
    """The buffer type that interleaves the rows of what is stored in it; None where the build has none."""
    g = library()
    registry = g.backend_cpu_reg()
    address = g.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return None
    kinds = c.CFUNCTYPE(c.POINTER(c.c_void_p), c.c_void_p)(address)(g.backend_reg_dev_get(registry, 0))
    place = 0
    while kinds and kinds[place]:
        if g.backend_buft_name(kinds[place]) == b"CPU_REPACK":
            return int(kinds[place])
        place += 1
    return None


def store(tensor: int, array: np.ndarray) -> None:
    """Copy a contiguous array of the tensor's size into it; a repacking buffer repacks it."""
    size = library().nbytes(tensor)
    if size != array.nbytes or not array.flags.c_contiguous:
        raise ValueError(f"the array has {array.nbytes} bytes and the tensor {size}")
    library().backend_tensor_set(tensor, array.ctypes.data, 0, size)


def fetch(tensor: int, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's f32 values."""
    array = np.empty(shape, np.float32)
    library().backend_tensor_get(tensor, array.ctypes.data, 0, array.nbytes)
    return array

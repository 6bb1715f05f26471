"""From the Metal text that MLX hands to Apple's compiler to C++ that the shim runs.

MLX writes the signature itself, and does so without a GPU while a function is exported: the text is MLX's own, not a
copy of how it is made. Rewritten are only the things that C++ has no words for: address spaces, attributes, and the
instantiation at the end, from which the template's arguments are taken.
"""

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from coterie.backends.mlx.metal import launch

SPACES = {"device": "shim::device_space", "constant": "shim::constant_space"}

_PARAMETER = re.compile(r"^\s*(?P<type>.*?)\s*(?P<name>\w+) \[\[(?P<what>\w+)(?:\((?P<index>\d+)\))?\]\](?:,|\) \{)$")
_POINTER = re.compile(r"\b(?P<const>const )?(?P<space>device|constant) (?P<type>\w+)(?P<kind>[*&])")
_SHARED = re.compile(r"\bthreadgroup (?P<type>\w+) (?P<name>\w+)\[(?P<count>\w+)\];")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the kernel: `what` is "buffer", or the attribute that the thread is told."""

    cpp_type: str
    name: str
    what: str


def generated(kernel: launch.Kernel, inputs: Sequence[mx.array], **call: Any) -> str:
    """The text that MLX makes of the kernel for one call, as it prints it when asked to."""

    def traced(*arrays: mx.array) -> list[mx.array]:
        outputs: list[mx.array] = launch.compiled(kernel)(inputs=list(arrays), verbose=True, **call)
        return outputs

    printed = _standard_output_of(lambda path: mx.export_function(path, traced, *inputs))
    return printed.partition("```\n")[2].rpartition("```")[0]


def to_cpp(text: str) -> str:
    """A C++ source with one function, `run`, that runs the kernel over a grid."""
    head, _, rest = text.partition("[[kernel]] void ")
    name, _, rest = rest.partition("(\n")
    signature, body = _split_signature(rest)
    body, _, instantiation = body.partition("\ntemplate [[host_name(")
    arguments = re.search(r"decltype\(\w+(<.*>)\)", instantiation)
    parameters = [_parameter(line) for line in signature]
    declared = ",\n".join(f"    {parameter.cpp_type} {parameter.name}" for parameter in parameters)
    collective = "simd_" in head + body or "barrier" in head + body
    first_line = head.count("\n") + len(signature) + 2
    return (
        '#include "launch.hpp"\n#define METAL_FUNC inline\n#define thread\n#define constant\n'
        f'#line 1 "{name}"\n{_spaces(head)}void kernel_body(\n{declared}) {{\n#line {first_line} "{name}"\n'
        f"{_spaces(body)}\n{_entry(parameters, arguments.group(1) if arguments else '', collective)}"
    )


def _split_signature(text: str) -> tuple[list[str], str]:
    lines = text.split("\n")
    last = next(i for i, line in enumerate(lines) if line.endswith(") {"))
    return lines[: last + 1], "\n".join(lines[last + 1 :])


def _parameter(line: str) -> Parameter:
    match = _PARAMETER.match(line)
    assert match, f"this parameter is not understood: {line}"
    return Parameter(_spaces(match["type"]), match["name"], match["what"])


def _spaces(text: str) -> str:
    """`text` with pointers into address spaces, and arrays in threadgroup memory, as the shim's types."""
    text = text.replace("const constant ", "constant const ").replace("const device ", "device const ")
    text = re.sub(r"\b(device|constant) const ", r"const \1 ", text)
    text = _POINTER.sub(_pointer, text)
    return _SHARED.sub(r"shim::Shared<\g<type>, \g<count>, __LINE__, __COUNTER__> \g<name>;", text)


def _pointer(match: re.Match[str]) -> str:
    qualified = f"{match['const'] or ''}{match['type']}"
    return f"{qualified}&" if match["kind"] == "&" else f"shim::Pointer<{SPACES[match['space']]}, {qualified}>"


def _entry(parameters: list[Parameter], arguments: str, collective: bool) -> str:
    passed = []
    n_buffers = 0
    for parameter in parameters:
        if parameter.what != "buffer":
            passed.append(f"place.{parameter.what}")
        elif parameter.cpp_type.endswith("&"):
            passed.append(f"*static_cast<{parameter.cpp_type[:-1]}*>(buffers[{n_buffers}].data)")
            n_buffers += 1
        else:
            passed.append(f"{parameter.cpp_type}{{&buffers[{n_buffers}]}}")
            n_buffers += 1
    return (
        'extern "C" int run(const shim::Buffer* buffers, const uint3* grid, const uint3* threads, int backwards,\n'
        "                   int flush, char* message, size_t room) {\n"
        "    const shim::Flush flushing(flush);\n"
        f"    return shim::launch(*grid, *threads, {str(collective).lower()}, backwards, message, room,\n"
        "                        [&](const shim::Place& place) {\n"
        f"        (void)place;\n        kernel_body{arguments}({', '.join(passed)});\n    }});\n}}\n"
    )


def buffer_names(cpp_source: str) -> list[str]:
    """The names of the kernel's buffers in their order; lengths and strides of inputs stand among them."""
    signature = cpp_source.partition("void kernel_body(\n")[2].partition(") {")[0]
    parameters = [line.rstrip(",").rpartition(" ") for line in signature.split("\n")]
    return [name for cpp_type, _, name in parameters if "shim::Pointer" in cpp_type or cpp_type.endswith("&")]


def _standard_output_of(call: Any) -> str:
    """What `call(path of a scratch file)` writes to the process's standard output, from C++ too."""
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as captured:
        kept = os.dup(1)
        os.dup2(captured.fileno(), 1)
        try:
            call(os.path.join(folder, "exported"))
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        captured.seek(0)
        return captured.read().decode()

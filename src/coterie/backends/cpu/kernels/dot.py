"""Dot products of weight rows with a few activations, straight from the packed bytes: the kernel of decoding.

Each block of a row is read once, its codes meet the activations of all tokens in registers, and the group's scale is
applied to the block's partial sums; the biases meet the activations' group sums once a row.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.kernels.decode import SCALE_BYTES, decode_fields, group_patterns, load_floats, load_scales
from coterie.backends.cpu.kernels.vector import I64, Vectors
from coterie.backends.cpu.layout import Layout, from_key

PREFETCH = 4096
"""How many bytes ahead of the codes in hand the next ones are asked for: a page, at which the hardware stops."""


@intrinsic(prefer_literal=True)
def dot_row(
    _context: Any, key: Any, most_tokens: Any, n_tokens: Any, codes: Any, scales: Any, biases: Any, n_inputs: Any,
    inputs: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """out[token * out_stride] = weight row . activations of the token, for n_tokens = 1..most_tokens (literal).

    codes, scales, biases: addresses of the row; n_inputs: weights in it. inputs: address of int64 addresses, one a
    token, of prepared activations. out: address of f32, the stride in elements.
    """
    layout, most = from_key(key.literal_value), most_tokens.literal_value

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        names = ("codes", "scales", "biases", "n_inputs", "inputs", "out", "out_stride")
        named = dict(zip(names, args[3:], strict=True))
        Vectors(builder, layout.isa).for_count(
            args[2], most, lambda count: _DotRow(builder, layout, count, named).emit()
        )
        return context.get_dummy_value()

    return types.void(key, most_tokens, *[types.int64] * 8), codegen


class _DotRow:
    def __init__(self, builder: Any, layout: Layout, n_tokens: int, args: dict[str, Any]) -> None:
        self.v = Vectors(builder, layout.isa)
        self.builder, self.layout, self.args = builder, layout, args
        self.inputs = [self.v.load(I64, self.v.at(args["inputs"], 8 * token)) for token in range(n_tokens)]
        self.sums = [self.v.variable(self.v.zero()) for _ in range(n_tokens)]

    def emit(self) -> None:
        b, v, layout = self.builder, self.v, self.layout
        n_inputs = self.args["n_inputs"]
        n_blocks = b.sdiv(n_inputs, v.integer(layout.block))
        with v.loop(n_blocks) as block:
            self._block(block, None)
        rest = b.srem(n_inputs, v.integer(layout.block))
        with b.if_then(b.icmp_signed(">", rest, v.integer(0)), likely=False):
            self._block(n_blocks, rest)
        if layout.kind == "affine":
            self._add_biases()
        for token, total in enumerate(self.sums):
            place = b.mul(self.args["out_stride"], v.integer(4 * token))
            v.store(v.sum(b.load(total)), b.add(self.args["out"], place))

    def _block(self, block: Any, n_valid: Any | None) -> None:
        b, v, layout = self.builder, self.v, self.layout
        codes = b.add(self.args["codes"], b.mul(block, v.integer(layout.block_bytes)))
        if n_valid is None:
            v.prefetch(b.add(codes, v.integer(PREFETCH)))
        fields = decode_fields(v, layout, codes, n_valid)
        bases = [b.add(address, b.mul(block, v.integer(4 * layout.block))) for address in self.inputs]

        def activation(token: int, field: int) -> Any:
            return v.load(v.floats, v.at(bases[token], 4 * v.lanes * field))

        if layout.scale == "none":
            for token in range(len(self.sums)):
                self._accumulate(token, fields[0], activation(token, 0))
            return
        n_groups = b.sdiv(self.args["n_inputs"], v.integer(layout.group)) if n_valid is not None else None
        scales = load_scales(v, layout, self.args["scales"], block, n_groups)
        for pattern, members in group_patterns(layout).items():
            lanes = v.shuffle(scales, pattern)
            for token in range(len(self.sums)):
                partial = b.fmul(fields[members[0]], activation(token, members[0]))
                for field in members[1:]:
                    partial = v.fma(fields[field], activation(token, field), partial)
                self._accumulate(token, partial, lanes)

    def _accumulate(self, token: int, a: Any, b: Any) -> None:
        total = self.sums[token]
        self.builder.store(self.v.fma(a, b, self.builder.load(total)), total)

    def _add_biases(self) -> None:
        """sums += biases . group sums of the activations, which stand behind the padded activations."""
        b, v, layout = self.builder, self.v, self.layout
        n_groups = b.sdiv(self.args["n_inputs"], v.integer(layout.group))
        blocks = b.sdiv(b.add(self.args["n_inputs"], v.integer(layout.block - 1)), v.integer(layout.block))
        padded = b.mul(blocks, v.integer(4 * layout.block))
        whole = b.sdiv(n_groups, v.integer(v.lanes))
        with v.loop(whole) as step:
            self._bias_step(b.mul(step, v.integer(v.lanes)), padded, None)
        rest = b.srem(n_groups, v.integer(v.lanes))
        with b.if_then(b.icmp_signed(">", rest, v.integer(0))):
            self._bias_step(b.mul(whole, v.integer(v.lanes)), padded, rest)

    def _bias_step(self, group: Any, padded: Any, n_valid: Any | None) -> None:
        b, v = self.builder, self.v
        offset = b.mul(group, v.integer(SCALE_BYTES[self.layout.scale]))
        biases = load_floats(v, self.layout.scale, b.add(self.args["biases"], offset), n_valid)
        for token, address in enumerate(self.inputs):
            place = b.add(b.add(address, padded), b.mul(group, v.integer(4)))
            group_sums = v.load(v.floats, place) if n_valid is None else v.load_masked(v.floats, place, n_valid)
            self._accumulate(token, biases, group_sums)

"""Tokens chosen on the device for the rows of a step: the draws of `coterie.runtime.sampling` with its own numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from coterie.backends.cuda.kernels import sample
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import cdiv, next_power_of_2

_BLOCK = 1024
"""Logits of a program."""

_WHOLE_BITS = 62
"""Bits of a sum of all shares."""


class Chooser:
    """Chooses a token for each of `n_rows` rows: as the `draws` say, and the likeliest for the rows behind them.

    A draw has temperature, top_k, top_p, min_p and uniforms, as `coterie.models.steps.Draw`.
    """

    def __init__(self, draws: Sequence[Any], n_rows: int, device: torch.device) -> None:
        asked = [draw for draw in draws if draw.temperature > 0.0]
        self._draws = bool(asked)
        self._has_k = any(draw.top_k > 0 for draw in asked)
        self._has_p = any(draw.top_p < 1.0 for draw in asked)
        self._numbers = [torch.from_numpy(np.append(draw.uniforms, 0.0)).to(device) for draw in draws]
        settings, uniforms = np.zeros((n_rows, sample.N_SETTINGS.value)), np.zeros((n_rows, 2), np.int64)
        for row, (draw, numbers) in enumerate(zip(draws, self._numbers, strict=True)):
            settings[row] = draw.temperature, draw.top_p, draw.min_p, draw.top_k
            uniforms[row] = numbers.data_ptr(), 0
        self._settings, self._uniforms = (torch.from_numpy(table).to(device) for table in (settings, uniforms))

    def choose(self, logits: torch.Tensor, found: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor) -> None:
        """From logits f32 [rows, V]: the tokens into `found`, -1 where logits are not finite, and as the next step's
        into `ids`; positions go on by one. All int64 [rows].
        """
        n_rows, n_logits = logits.shape
        n_blocks = cdiv(n_logits, _BLOCK)
        tops = torch.empty((n_rows, n_blocks), dtype=torch.float32, device=logits.device)
        places, bad = (torch.empty((n_rows, n_blocks), dtype=torch.int32, device=logits.device) for _ in range(2))
        sizes = {"BLOCK": _BLOCK, "num_warps": 4, **early(logits)}
        id_bits = max(1, (n_logits - 1).bit_length())
        shape = {"UNIT": _WHOLE_BITS - id_bits, "ID_BITS": id_bits, "BLOCKS": next_power_of_2(n_blocks), **sizes}
        kinds = {"HAS_K": self._has_k, "HAS_P": self._has_p}
        k_borders = p_borders = sums = None
        with on_device_of(logits):
            launch(
                sample.find_highest_kernel, (n_blocks, n_rows), logits, tops, places, bad, n_logits, n_blocks, **sizes
            )
            if self._has_k:
                k_borders = self._borders(logits, tops, places, None, n_blocks, shape)
            if self._has_p:
                p_borders = self._borders(logits, tops, places, k_borders, n_blocks, shape, by_share=True)
            if self._draws:
                sums = torch.empty((n_rows, n_blocks), dtype=torch.int64, device=logits.device)
                launch(
                    sample.sum_shares_kernel, (n_blocks, n_rows),
                    logits, tops, places, self._settings, k_borders, p_borders, sums, n_logits, n_blocks, **kinds,
                    **shape,
                )  # fmt: skip
            launch(
                sample.take_tokens_kernel, (n_rows,),
                logits, tops, places, bad, self._settings, k_borders, p_borders, sums, self._uniforms, found, ids,
                positions, n_logits, n_blocks, DRAWS=self._draws, **kinds, **shape,
            )  # fmt: skip

    def _borders(
        self, logits: torch.Tensor, tops: torch.Tensor, places: torch.Tensor, others: torch.Tensor | None,
        n_blocks: int, shape: dict[str, Any], *, by_share: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """int64 [rows, 4], of which the first is the border of top_k, or of top_p among those that reach the others."""
        n_rows, n_logits = logits.shape
        n_digits = cdiv(32 + shape["ID_BITS"], sample.DIGIT.value)
        sums = torch.empty((2, n_rows, n_blocks, sample.N_DIGITS.value), dtype=torch.int64, device=logits.device)
        states = torch.empty((2, n_rows, sample.N_STATES.value), dtype=torch.int64, device=logits.device)
        for done in range(n_digits + 1):
            here, there = (done + 1) % 2, done % 2
            launch(
                sample.next_digit_kernel, (n_blocks if done < n_digits else 1, n_rows),
                logits, tops, places, self._settings, sums[here], sums[there], states[here], states[there], others,
                n_logits, n_blocks, n_digits - done, IS_FIRST=done == 0, IS_SECOND=done == 1,
                IS_LAST=done == n_digits, BY_SHARE=by_share, AMONG_OTHERS=others is not None, **shape,
            )  # fmt: skip
        return states[n_digits % 2]

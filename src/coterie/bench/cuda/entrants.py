"""Who is measured on the device: something that computes layers from hidden states and router logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from coterie.bench.cuda.layers import Plan
from coterie.bench.shapes import Shape
from coterie.formats import Format
from coterie.moe import Experts, moe
from coterie.ops.routing import RouteSpec, route

Layer: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x bf16 [T, H], logits f32 [T, E]) -> [T, H]: softmax, the top k renormalised, and their experts' weighted sum."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A shape in a format, and its layers on the device, for everybody who computes them. `fmt` of None is bf16."""

    shape: Shape
    format_name: str
    fmt: Format | None
    layers: Sequence[Experts]
    plan: Plan


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    """`layers`: one for each of the case's. most_tokens: None, or up to where it can go. `note` says what a reader must
    know to compare.
    """

    label: str
    layers: Sequence[Layer]
    kind: str = "peer"
    note: str = ""
    most_tokens: int | None = None


def own(case: Case) -> Entrant:
    """This library."""
    return Entrant("coterie", [own_layer(experts, case.shape) for experts in case.layers], "coterie")


def own_layer(experts: Experts, shape: Shape) -> Layer:
    """A layer by the public functions, their checks included."""
    spec = RouteSpec(shape.top_k)
    return lambda x, logits: moe(x, route(logits, spec), experts)

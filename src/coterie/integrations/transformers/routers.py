"""Routers of transformers whose matrix is packed: they multiply by `self.weight`, which here stands for the matrix."""

import functools
from typing import Any

import torch
from torch.nn import functional

from coterie.integrations.transformers.modules import PackedMatrix, Stored, rows_of


def pack(router: Any, stored: Stored, dtype: Any) -> None:
    """Give the module `router` packed parameters in place of its weight, without values yet."""
    kind: Any = type(router)
    router.__class__ = _packed_class(kind)
    router.hold(stored, dtype)


@functools.cache
def _packed_class(router_class: Any) -> Any:
    return type(f"Packed{router_class.__name__}", (_PackedRouter, router_class), {"__doc__": router_class.__doc__})


class _PackedRouter(PackedMatrix):
    @property
    def weight(self) -> Any:
        codes = self._parameters["weight"]
        return codes if codes is None or codes.is_meta else _StandIn.of(self)


class _StandIn(torch.Tensor):  # type: ignore[misc]
    """A tensor without values; what is done to it is done to the matrix, dequantised unless it is a product."""

    router: PackedMatrix

    @staticmethod
    def of(router: PackedMatrix) -> Any:
        made = torch.empty(router.matrix().shape, dtype=torch.float32, device="meta").as_subclass(_StandIn)
        made.router = router
        return made

    @classmethod
    def __torch_function__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.linear and type(args[1]) is _StandIn:
            return _linear(*args, **kwargs)
        return function(*map(_dequantized, args), **{key: _dequantized(value) for key, value in kwargs.items()})


def _linear(x: Any, stand_in: Any, bias: Any = None) -> Any:
    product = stand_in.__dict__["router"].product(x)
    return product if bias is None else product + bias.to(x.dtype)


def _dequantized(value: Any) -> Any:
    return rows_of(value.__dict__["router"].matrix()) if type(value) is _StandIn else value

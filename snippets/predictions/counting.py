"""Operations, bytes and launches of a page's own code, counted on tensors that have a shape and no content.

What an accelerator runs eagerly is counted: every operation that PyTorch dispatches is a launch and goes once through
the tensors that it is given and makes; they run one after the other. Fusion and caches are left out, and so are
operations outside of products: their bytes take longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from snippets.instruments.targets import Target
from snippets.models.compiled import LOOKUPS


def _product_flops(a: tuple[int, int], b: tuple[int, int], **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


INTEGER_PRODUCTS = {torch.ops.aten._int_mm: _product_flops}  # which PyTorch's counter does not know


@dataclass(frozen=True)
class Work:
    """FLOP of products, bytes that products and all other operations go through, operations queued."""

    flops: float = 0
    product_bytes: float = 0
    other_bytes: float = 0
    launches: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.product_bytes + other.product_bytes,
            self.other_bytes + other.other_bytes,
            self.launches + other.launches,
        )

    def seconds(self, target: Target, number_format: str) -> float:
        """Least seconds of it, its products in that format: products and the rest in turn, launched meanwhile.

        Raises:
            LookupError: the target has no units for that format.
        """
        products = target.seconds(number_format, flops=self.flops, bytes=self.product_bytes, launches=0)
        rest = target.seconds(number_format, bytes=self.other_bytes, launches=0)
        return max(products + rest, target.seconds(number_format, launches=self.launches))


class _Traffic(TorchDispatchMode):
    """Operations that compute something, and bytes of what they read or write."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.product_bytes = self.other_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(part) if isinstance(x, Tensor)] for part in ((args, kwargs), out))
        held = {_storage(tensor) for tensor in given}
        fresh = [tensor for tensor in made if _storage(tensor) not in held]  # a view computes nothing
        name = func._schema.name
        if (fresh or func._schema.is_mutable) and "empty" not in name:
            read = fresh if name in LOOKUPS else given  # a lookup reads the rows that it returns, not its table
            moved = sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in (*read, *fresh))  # once if expanded
            self.launches += 1
            if func.overloadpacket in flop_registry or func.overloadpacket in INTEGER_PRODUCTS:
                self.product_bytes += moved
            else:
                self.other_bytes += moved
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # on the meta device no address tells storages apart


def counted(function: Callable[..., object], *args: Any) -> Work:
    """What a call on meta tensors would hand to an accelerator, its backward pass included if it runs one."""
    with FlopCounterMode(display=False, custom_mapping=INTEGER_PRODUCTS) as flops, _Traffic() as traffic:
        function(*args)
    return Work(flops.get_total_flops(), traffic.product_bytes, traffic.other_bytes, traffic.launches)

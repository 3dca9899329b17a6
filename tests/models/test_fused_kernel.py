"""The fused residual and norm against plain PyTorch, interpreted, on odd widths."""

from __future__ import annotations

import pytest
import torch

from tests.triton_interpreter import interpret, needs_triton


def interpreted() -> None:
    """Runs where kernels are interpreted: every width and dtype, and what is refused."""
    from snippets.models.fused_kernel import add_norm

    generator = torch.Generator().manual_seed(0)
    for dtype, close in ((torch.float32, 1e-5), (torch.float16, 4e-3)):
        for rows, hidden in ((1, 1), (2, 3), (5, 7), (3, 64), (2, 100)):
            x, added = (torch.randn(rows, hidden, generator=generator).to(dtype) for _ in range(2))
            weight = torch.randn(hidden, generator=generator).to(dtype)
            summed, normed = add_norm(x, added, weight)
            wide = (x + added).double()
            wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight
            assert torch.equal(summed, x + added) and normed.dtype == dtype
            assert float((normed.double() - wanted).abs().max()) <= close * float(wanted.abs().max())
            assert float((normed.double() - wide * weight).abs().max()) > close  # the norm is no identity
    # Rows that are no rows of memory's order.
    x = torch.randn(7, 5, generator=generator).T
    summed, _ = add_norm(x, x, torch.ones(7))
    assert torch.equal(summed, 2 * x)
    with pytest.raises(ValueError, match="do not fit"):
        add_norm(x, x[:2], torch.ones(7))
    print("agreed")


@needs_triton
def test_the_kernel_equals_plain_pytorch() -> None:
    assert interpret(__file__, "interpreted").strip() == "agreed"

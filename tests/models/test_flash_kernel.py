"""FlashAttention's forward kernel in Triton's interpreter, against naive attention on odd sizes."""

from __future__ import annotations

import pytest
import torch

from tests.triton_interpreter import interpret, needs_triton

CASES = (
    (6, 3, 14, 7, None),
    (3, 3, 20, 33, 5),
    (4, 1, 64, 65, 65),
    (2, 2, 16, 1, 1),
    (5, 5, 18, 50, 1),
    (2, 1, 8, 49, 17),
)


def compare_kernel() -> None:
    """Runs in a process of its own, where Triton interprets."""
    from snippets.models.flash_kernel import attend

    for dtype, bound in ((torch.float32, 2e-6), (torch.float16, 2e-3)):
        for heads, kv_heads, head_dim, tokens, window in CASES:
            generator = torch.Generator().manual_seed(tokens)
            queries, keys, values = (
                torch.randn(count, tokens, head_dim, generator=generator).to(dtype)
                for count in (heads, kv_heads, kv_heads)
            )
            many = [part.double().repeat_interleave(heads // kv_heads, 0) for part in (keys, values)]
            back = torch.arange(tokens)[:, None] - torch.arange(tokens)
            hidden = (back < 0) | (back >= (window or tokens))
            scores = (queries.double() @ many[0].mT * head_dim**-0.5).masked_fill(hidden, -torch.inf)
            plain = scores.softmax(-1) @ many[1]
            found = attend(queries, keys, values, window=window, block=16)
            assert found.shape == queries.shape and found.dtype == dtype
            error = float((found.double() - plain).norm() / plain.norm())
            assert error < bound, (dtype, heads, kv_heads, head_dim, tokens, window, error)
            assert float(plain.norm()) > 0.1
    for wrong in ({"block": 24}, {"block": 8}):
        with pytest.raises(ValueError, match="power of two"):
            attend(queries, keys, values, **wrong)
    with pytest.raises(ValueError, match="do not fit"):
        attend(queries, keys[:, 1:], values[:, 1:])
    print("equal")


@needs_triton
def test_the_kernel_equals_naive_attention_in_tritons_interpreter() -> None:
    assert interpret(__file__, "compare_kernel") == "equal\n"

"""Work of attention, by hand and against PyTorch's own count."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from snippets.models.decoder import attend
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.attention import attention

TOKENS, ELEMENT_BYTES = 7, 2


def test_one_new_token_reads_every_key_and_value_once() -> None:
    shape, width = SMOLLM2_135M, SMOLLM2_135M.head_dim
    found = attention(shape, TOKENS, ELEMENT_BYTES, batch=3)
    numbers = 2 * shape.kv_heads * TOKENS * width + 2 * shape.heads * width
    assert (found.product_bytes, found.other_bytes, found.launches) == (3 * ELEMENT_BYTES * numbers, 0, 1)


def test_operations_are_those_that_pytorch_counts() -> None:
    shape = SMOLLM2_135M
    queries = torch.empty(1, shape.heads, 1, shape.head_dim, device="meta")
    keys = torch.empty(1, shape.kv_heads, TOKENS, shape.head_dim, device="meta")
    with FlopCounterMode(display=False) as counter:
        attend(queries, keys, keys)
    assert attention(shape, TOKENS, ELEMENT_BYTES).flops == counter.get_total_flops()


def test_a_prompt_sees_nothing_ahead_and_fewer_kv_heads_save_no_operation() -> None:
    """Tokens attend to one, two, three and so on."""
    single, whole = (attention(SMOLLM2_135M, TOKENS, ELEMENT_BYTES, new=new).flops for new in (1, TOKENS))
    assert whole == single // TOKENS * sum(range(1, TOKENS + 1))
    shared = replace(SMOLLM2_135M, kv_heads=1)
    assert attention(shared, TOKENS, ELEMENT_BYTES, new=TOKENS).flops == whole

"""One layer's prefill with a prefix found and without: products, weights, attention, and the launches of a paged step.

Gathers and activations are left out, and so is the bookkeeping in Python that a device's queue waits for.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from snippets.instruments.targets import Target
from snippets.kv_cache.prefix_caching import BLOCK_TOKENS, LAYER, Scale
from snippets.models.decoder import Decoder
from snippets.models.paged import PagedCache, step
from snippets.predictions.counting import counted
from snippets.predictions.layers import step_seconds

SCALE = Scale()
NARROW = replace(LAYER, hidden=16, heads=4, kv_heads=2, head_dim=4, ffn=16)  # launches do not depend on widths


@cache
def launches(found: int, new: int) -> int:
    """Operations of a paged step with so many tokens found and so many computed."""
    cache = PagedCache(NARROW, -(-(found + new) // BLOCK_TOKENS), BLOCK_TOKENS, torch.bfloat16)
    sequence, ids = cache.admit(), torch.zeros(new, dtype=torch.long)
    if found:
        cache.append({sequence: found})
    return counted(step, Decoder(NARROW).to(torch.bfloat16), cache, {sequence: ids}).launches


def first_token_seconds(target: Target, found: int, computed: int) -> float:
    """Least seconds to the logits of a prompt of which some tokens' blocks were found."""
    return step_seconds(
        target,
        LAYER,
        rows=1,
        context=found + computed,
        new=computed,
        launches_per_layer=launches(found, computed),
    )


def saved_ratio(target: Target, shared: int) -> float:
    """Seconds of the whole prompt over those of what comes behind a shared prefix."""
    whole = first_token_seconds(target, 0, shared + SCALE.new)
    return whole / first_token_seconds(target, shared, SCALE.new)


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    return {
        "first_token_ratio": saved_ratio(target, SCALE.shared),
        "block_first_token_ratio": saved_ratio(target, BLOCK_TOKENS),
        "hash_seconds": "hashing in Python, whose operations are not the device's",
    }

"""What a prompt does to those who write: steps of a paged cache that three answers share with a newcomer."""

from __future__ import annotations

import torch
from torch import Tensor

from snippets.instruments import clock
from snippets.models import paged
from snippets.models.decoder import Decoder
from snippets.models.paged import PagedCache


def step_times(decoder: Decoder, ids: Tensor, prompt: int, last: int, *, rounds: int) -> clock.Interleaved:
    """Seconds of one step of three who write beside a newcomer: `whole` of its prompt, or the `last` of its tokens.

    Args:
        decoder: any decoder.
        ids: text that all of them begin with at some place, (tokens,).
        prompt: tokens of the newcomer's prompt.
        last: how many of these are left for the second kind of step; the others lie in the cache.
        rounds: of timing.

    Raises:
        ValueError: nothing or all of the prompt would be left.
    """
    if not 0 < last < prompt:
        raise ValueError(f"{last} of {prompt} tokens cannot be the last part of a prompt")
    cache = PagedCache(decoder.geometry, 64, 16, decoder.lm_head.weight.dtype, decoder.lm_head.weight.device)
    writers = {cache.admit(): ids[at : at + 32] for at in (0, 100, 200)}
    paged.step(decoder, cache, writers)
    begun = cache.admit()
    paged.step(decoder, cache, {begun: ids[: prompt - last]})

    def shared(part: torch.Tensor, of: int | None = None) -> None:
        """Twins take the step and are forgotten, so that each call finds the same cache."""
        twins = [cache.fork(writer) for writer in writers]
        newest = cache.admit() if of is None else cache.fork(of)
        paged.step(decoder, cache, {**{twin: ids[:1] for twin in twins}, newest: part})
        for sequence in (*twins, newest):
            cache.finish(sequence)

    calls = {"whole": lambda: shared(ids[:prompt]), "last": lambda: shared(ids[prompt - last : prompt], begun)}
    return clock.interleave(calls, device=decoder.lm_head.weight.device, rounds=rounds, blocks=1)

"""Steps that answers share with a prompt: which tokens are run, and no part that is none."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from snippets.models import interference, paged
from snippets.models.decoder import Decoder
from snippets.models.paged import PagedCache
from tests.odd import odd_decoder, odd_ids

pytestmark = pytest.mark.timing


@pytest.mark.parametrize(("prompt", "last"), [(40, 1), (40, 7), (33, 32)])
def test_a_step_runs_the_whole_prompt_or_its_last_part(prompt: int, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, seen = odd_ids(1, 300)[0], Counter[tuple[int, ...]]()
    step = paged.step

    def watched(decoder: Decoder, cache: PagedCache, tokens: dict) -> torch.Tensor:
        seen[tuple(len(part) for part in tokens.values())] += 1
        return step(decoder, cache, tokens)

    monkeypatch.setattr(paged, "step", watched)
    times = interference.step_times(odd_decoder(), ids, prompt, last, rounds=2)
    assert set(seen) == {(32, 32, 32), (prompt - last,), (1, 1, 1, prompt), (1, 1, 1, last)}
    assert seen[1, 1, 1, prompt] >= 2 and seen[1, 1, 1, last] >= 2
    assert times.seconds("whole") > 0 < times.seconds("last")


@pytest.mark.parametrize("last", [0, 40, 41])
def test_a_last_part_is_a_part(last: int) -> None:
    with pytest.raises(ValueError, match="cannot be the last part"):
        interference.step_times(odd_decoder(), odd_ids(1, 300)[0], 40, last, rounds=2)

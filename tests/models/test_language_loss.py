"""Loss of windows: against transformers' own loss, and errors of paired differences against a by-hand one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from snippets.models import smollm2, texts
from snippets.models.decoder import Decoder, initialize
from snippets.models.language_loss import (
    calibration_windows,
    paired_difference,
    unseen_windows,
    window_nats,
    windows,
)
from snippets.models.shapes import Geometry

pytestmark = pytest.mark.models


def test_windows_lie_end_to_end() -> None:
    assert windows(torch.arange(11), 3, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(ValueError, match="need 12 tokens"):
        windows(torch.arange(11), 3, 4)


def test_equal_to_transformers_loss_window_by_window(tiny: Geometry, llama: Any) -> None:
    theirs = llama(tiny)
    decoder = Decoder(tiny)
    decoder.load_state_dict({n.removeprefix("model."): t for n, t in theirs.state_dict().items()}, strict=True)
    ids = windows(torch.randint(tiny.vocabulary, (70,), generator=torch.Generator().manual_seed(1)), 7, 5)
    nats = window_nats(decoder, ids)
    with torch.no_grad():
        expected = [float(theirs(ids[i : i + 1], labels=ids[i : i + 1]).loss) for i in range(5)]
    assert nats.dtype == torch.float64 and nats.shape == (5,)
    assert nats.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary(tiny: Geometry) -> None:
    decoder = initialize(Decoder(tiny), seed=0, std=1e-6)
    nats = window_nats(decoder, torch.arange(40).view(4, 10))
    assert nats.tolist() == pytest.approx([math.log(tiny.vocabulary)] * 4, abs=1e-4)


def test_paired_difference_by_hand() -> None:
    mean, error = paired_difference(torch.tensor([5.0, 7.0, 9.0]), torch.tensor([4.0, 5.0, 6.0]))
    assert mean == 2.0 and error == pytest.approx(math.sqrt(1.0 / 3))
    assert math.isnan(paired_difference(torch.tensor([1.0]), torch.tensor([0.5]))[1])
    with pytest.raises(ValueError):
        paired_difference(torch.ones(3), torch.ones(4))


def test_texts_windows_are_the_tokens_of_their_texts() -> None:
    unseen = unseen_windows(2, 100)
    assert unseen.shape == (2, 100)
    assert texts.address().startswith(smollm2.tokenizer().decode(unseen.flatten().tolist()))
    older = calibration_windows(3, 50)
    assert texts.address(2024).startswith(smollm2.tokenizer().decode(older.flatten().tolist()))
    assert unseen_windows().shape == (4, 1024)

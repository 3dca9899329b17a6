"""What attention holds that stores its scores, by hand and against the fused kernel's step."""

from __future__ import annotations

import pytest

from snippets.instruments.targets import Target
from snippets.models.capacity import row_bytes
from snippets.models.shapes import SMOLLM2_135M, Geometry
from snippets.predictions.quantization.which_model_fits import STEP_TOKENS, predict, unfused_bytes

ANY = Target("any", {}, 1e9, 1e9, None, 0.0, frozenset(), "a test")


def test_by_hand() -> None:
    """Two tokens, hidden size four, one head of four: states, three factors, the mask, three matrices of scores."""
    geometry = Geometry("made up", 1, 4, 1, 1, 4, 8, 16, True, "a test")
    assert unfused_bytes(geometry, 2) == 2 * 2 * 2 * 4 + 3 * 4 * 2 * 4 + 4 * 2**2 + 3 * 4 * 2**2


def test_it_grows_with_the_square_of_the_tokens() -> None:
    assert unfused_bytes(SMOLLM2_135M, 2**16) / unfused_bytes(SMOLLM2_135M, 2**15) == pytest.approx(4, rel=0.01)


def test_it_is_more_than_the_fused_step_takes() -> None:
    assert predict(ANY)["unfused_step_bytes"] > STEP_TOKENS * row_bytes(SMOLLM2_135M)  # type: ignore[operator]

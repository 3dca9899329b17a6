"""A training step of the small decoder with rounding in its forward pass and without: every operation dispatched.

The update is AdamW's by formula, after gradients are read for their norm and scaled; drawing the text is left out.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch.nn.utils import parametrize

from snippets.instruments.targets import Target
from snippets.models import trained
from snippets.models.decoder import Decoder
from snippets.models.rounding import Scheme, matrices
from snippets.models.shapes import parameters
from snippets.predictions.counting import Work, counted
from snippets.predictions.training import adamw

GEOMETRY = trained.GEOMETRIES["small"]
CLIP_BYTES = 3 * 4  # an FP32 gradient is read for the norm, then read and written for the scale


@cache
def step(scheme: Scheme | None) -> Work:
    """One step, its matrices rounded by that scheme if there is one."""
    with torch.device("meta"):
        decoder, ids = Decoder(GEOMETRY), torch.empty(trained.BATCH, trained.LENGTH + 1, dtype=torch.long)
    for name in matrices(decoder) if scheme else ():
        rounding = trained.StraightThrough(scheme)  # type: ignore[arg-type]
        parametrize.register_parametrization(decoder.get_submodule(name), "weight", rounding)
    work = counted(lambda: F.cross_entropy(decoder(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward())
    weights = parameters(GEOMETRY).total
    return work + Work(other_bytes=CLIP_BYTES * weights) + adamw(weights)


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    aware, plain = (step(scheme).seconds(target, "float32") for scheme in (trained.FURTHER_SCHEMES[4], None))
    return {"aware_step_seconds": aware, "aware_step_ratio": aware / plain}

"""Counted is every operation that the page times, a layer of each public model in BF16 and a token of each decoder
trained here in FP32, on tensors without content; caches, in which the latter fit, are left out."""

from __future__ import annotations

from functools import cache

import torch

from snippets.instruments.targets import Target
from snippets.models import trained
from snippets.models.decoder import Decoder
from snippets.models.shapes import LLAMA_3_8B, Geometry
from snippets.predictions.counting import Work, counted
from snippets.throughput.distillation import LLAMA_3_2_1B, STUDENT, TEACHER, layer_step, token_step


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    large, little = (_layer(geometry).seconds(target, "bfloat16") for geometry in (LLAMA_3_8B, LLAMA_3_2_1B))
    teacher, student = (_token(trained.GEOMETRIES[name]).seconds(target, "float32") for name in (TEACHER, STUDENT))
    return {
        "pair_speed_ratio": large * LLAMA_3_8B.layers / (little * LLAMA_3_2_1B.layers),
        "narrow_speed_ratio": teacher / student,
        "large_layer_seconds": large,
        "little_layer_seconds": little,
    }


@cache
def _layer(geometry: Geometry) -> Work:
    return counted(layer_step(geometry, torch.device("meta")))


@cache
def _token(geometry: Geometry) -> Work:
    with torch.device("meta"):
        step = token_step(Decoder(geometry).requires_grad_(False))
    return counted(step)

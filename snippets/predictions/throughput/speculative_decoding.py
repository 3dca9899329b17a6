"""Counted are the products, weights, cache and launches of the target's steps over one and over several tokens and of
the draft's; how many proposals are right is assumed, and the host's part, sampling and searching, is left out."""

from __future__ import annotations

from dataclasses import replace

from snippets.instruments.targets import Target
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry
from snippets.models.trained import GEOMETRIES
from snippets.predictions.kinds import on_cpu
from snippets.predictions.layers import ELEMENT_BYTES, step_seconds
from snippets.predictions.reasons import ON_THE_HOST
from snippets.throughput.speculative_decoding import Scale, check_values, expected_tokens, formula_values

COSTLY_GAMMA, RIGHT = 8, 2
"""Proposals of the dear draft; and of the timed copy, steps whose proposals are all right, behind one without any."""


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale, layer = Scale(), replace(LLAMA_3_8B, layers=1)
    one = step_seconds(target, layer, rows=1, context=1, head=False)
    checks = [step_seconds(target, layer, rows=1, new=new, context=new, head=False) for new in scale.checked]
    check = check_values({"checked_tokens": list(scale.checked), "check_ratio": [each / one for each in checks]})
    plain, looked = (_fp32_seconds(target, SMOLLM2_135M, new) for new in (1, scale.looked + 1))
    return {
        "copy_speed_ratio": (1 + RIGHT * (scale.looked + 1)) * plain / (plain + RIGHT * looked),
        "free_speed_ratio": plain / plain,  # assumed: nothing is found, so nothing proposed
        **check,
        **_costly(target),
    }


def _costly(target: Target) -> dict[str, float | str]:
    """The tiny decoder as a draft of the small one, accepted as often as in the page's textbook case."""
    if not on_cpu(target):
        return {"costly_ratio": ON_THE_HOST, "costly_share": ON_THE_HOST}
    small, tiny = GEOMETRIES["small"], GEOMETRIES["tiny"]
    plain, draft, check = (
        _fp32_seconds(target, geometry, new) for geometry, new in ((small, 1), (tiny, 1), (small, COSTLY_GAMMA + 1))
    )
    tokens = expected_tokens(formula_values()["alpha_share"], COSTLY_GAMMA)
    return {"costly_ratio": (COSTLY_GAMMA * draft + check) / (tokens * plain), "costly_share": draft / plain}


def _fp32_seconds(target: Target, geometry: Geometry, new: int) -> float:
    """A whole decoder's step over so many tokens of one short sequence."""
    size = ELEMENT_BYTES["float32"]
    return step_seconds(target, geometry, rows=new, weight_bytes_per_weight=size, number_format="float32")

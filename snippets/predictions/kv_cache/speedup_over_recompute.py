"""A decode step with a cache and without, by length: products, weights, cache and launches of the whole model.

The page fits its three terms to these seconds as it does to measured ones; activations are left out.
"""

from __future__ import annotations

from snippets.instruments.targets import Target
from snippets.kv_cache.speedup_over_recompute import LENGTHS, fit_values, ratio_values
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.layers import step_seconds

NOISE = 1e-9  # seconds and shares that are rounding of the fit


def columns(target: Target) -> dict[str, list]:
    """The page's table of both steps, every second of it predicted."""
    cached = [step_seconds(target, SMOLLM2_135M, rows=1, context=n) for n in LENGTHS]
    uncached = [step_seconds(target, SMOLLM2_135M, rows=1, context=n, new=n) for n in LENGTHS]
    return {
        "context_tokens": list(LENGTHS),
        "cached_seconds": cached,
        "uncached_seconds": uncached,
        "time_ratio": [slow / fast for slow, fast in zip(uncached, cached, strict=True)],
    }


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    found = columns(target)
    terms = {name: 0.0 if abs(value) < NOISE else value for name, value in fit_values(found).items()}
    return {**ratio_values(found), **terms}

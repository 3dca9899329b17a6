"""Counted is a box, read and written; everything else is left out."""

from __future__ import annotations

from snippets.kv_cache.sample import count_values  # type: ignore

from snippets.instruments.targets import Target


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    box = count_values(3, 5)["box_bytes"]
    one, four = (target.seconds("float32", bytes=count * box, launches=0) for count in (1, 4))
    return {
        "speed_ratio": four / one,
        "step_seconds": "a pause that nobody counts",
    }

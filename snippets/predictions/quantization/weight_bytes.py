"""Nothing is predicted: the one value that depends on the machine is an allocator's."""

from __future__ import annotations

from snippets.instruments.targets import Target


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    return {"minilm_int4_held_bytes": "an allocator's rounding of each tensor, which operations and bytes do not tell"}

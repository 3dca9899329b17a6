"""Nothing is predicted: what depends on the machine is the last bit of a sum."""

from __future__ import annotations

from snippets.instruments.targets import Target

ORDER = "how sums round, which the order of a kernel's additions decides"


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    return dict.fromkeys(("self_above_share", "self_unequal_share"), ORDER)

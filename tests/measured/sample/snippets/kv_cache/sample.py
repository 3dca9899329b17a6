"""How big is a box?"""

from __future__ import annotations

# --8<-- [start:imports]
from snippets.models import tally  # type: ignore

# --8<-- [end:imports]


# --8<-- [start:count]
def count_values(rows: int, columns: int) -> dict[str, int]:
    """A box counted by its shape and by its elements."""
    return {
        "rows_count": rows,
        "columns_count": columns,
        "box_bytes": tally.boxes(rows, columns) * 8,
        "counted_bytes": sum(8 for _ in range(rows) for _ in range(columns)),
    }


def box_columns(rows: list[int]) -> dict[str, list]:
    """Boxes of several rows."""
    return {
        "name": [f"box {n}" for n in rows],
        "rows_count": rows,
        "box_bytes": [count_values(n, 5)["box_bytes"] for n in rows],
    }


# --8<-- [end:count]


def measure(*, small: bool = False) -> dict[str, float]:
    """Every value of the page."""
    return {**count_values(3, 5), "mean_ratio": tally.mean_ratio(), "speed_ratio": tally.speed_ratio()}


def control(*, small: bool = True) -> dict[str, float]:
    """The same without the technique."""
    return {"mean_ratio": 1.0, "speed_ratio": 1.0}

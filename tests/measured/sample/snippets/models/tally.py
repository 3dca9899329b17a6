"""Counting, as a module that pages import."""


def boxes(rows: int, columns: int) -> int:
    """Elements of a box."""
    return rows * columns


def mean_ratio() -> float:
    """A mean of something."""
    return 0.5


def speed_ratio() -> float:
    """A ratio of times."""
    return 4.0

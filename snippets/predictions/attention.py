"""Work of fused attention by formula."""

from __future__ import annotations

from snippets.models.shapes import Geometry
from snippets.predictions.counting import Work


def attention(geometry: Geometry, tokens: int, element_bytes: int, *, new: int = 1, batch: int = 1) -> Work:
    """One layer's causal attention of the newest tokens to all of a sequence: scores, and the weighted sum of values.

    Each key and value is read once, whatever the query heads that share it; scores never leave the kernel.
    """
    pairs = new * tokens - new * (new - 1) // 2  # of a token and one that it sees
    numbers = geometry.head_dim * (2 * geometry.heads * new + 2 * geometry.kv_heads * tokens)
    return Work(
        flops=4 * batch * geometry.heads * geometry.head_dim * pairs,
        product_bytes=batch * numbers * element_bytes,
        launches=1,
    )

"""Counted are a layer's operations, stored bytes and one launch, each way of storing it, and a whole decoder's step;
that kernels for sparse weights gather inputs out of order is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.kinds import on_cpu
from snippets.predictions.layers import ELEMENT_BYTES, product_seconds, step_seconds
from snippets.throughput import pruning as page

SHORT = "bfloat16"


def csr_format(target: Target) -> str:
    """In which the page stores sparse weights there: libraries for processors have no BF16 for them."""
    return "float32" if on_cpu(target) else SHORT


def csr_seconds(target: Target, shape: tuple[int, int], share: float, rows: int) -> float:
    """Least seconds of a product with that share of weights left out of storage, computed by FP32's units."""
    outputs, inner = shape
    kept, size = inner - round(share * inner), ELEMENT_BYTES[csr_format(target)]
    moved = page.csr_bytes(shape, kept, size) + rows * (outputs + inner) * size
    return target.seconds("float32", flops=2 * rows * outputs * kept, bytes=moved)


@dataclass(frozen=True)
class Taken:
    """Predicted seconds under the names that the page times them by, in place of measured ones."""

    by_name: Mapping[str, float]

    def ratio(self, one: str, other: str) -> float:
        """How many times as long the one takes."""
        return self.by_name[one] / self.by_name[other]


def layer_keys(target: Target, scale: page.Scale) -> list[page.Key]:
    """How the page stores the layer on such a device, two of four aside, which no recorded value is of."""
    sparse = {"float32": "FP32", SHORT: "BF16"}[csr_format(target)]
    dense: list[page.Key] = [("dense", "BF16", 0.0), ("dense", "FP32", 0.0)]
    for share in (page.HALF, page.MOST):
        dense += [("dense with zeros", "BF16", share), ("rows removed", "BF16", share)]
    return dense + [("CSR", sparse, share) for share in scale.shares]


def way_seconds(target: Target, key: page.Key, rows: int, shape: tuple[int, int]) -> float:
    """Least seconds of the layer's product, stored in that way."""
    (way, name, share), (outputs, inner) = key, shape
    if way == "CSR":
        return csr_seconds(target, shape, share, rows)
    kept = outputs - round(share * outputs) if way == "rows removed" else outputs
    return product_seconds(target, rows, kept, inner, {"FP32": "float32", "BF16": SHORT}[name])


def step_values(target: Target, scale: page.Scale) -> dict[str, float]:
    """A step of SmolLM2 in BF16, over one without half its FFN neurons; zeros stored dense are no less than weights."""
    whole, removed = (
        step_seconds(target, geometry, rows=1, context=scale.context + 1)
        for geometry in (SMOLLM2_135M, replace(SMOLLM2_135M, ffn=SMOLLM2_135M.ffn - SMOLLM2_135M.ffn // 2))
    )
    return {"step_zeros_ratio": whole / whole, "step_removed_ratio": whole / removed}


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale = page.Scale()
    keys = layer_keys(target, scale)
    taken = {
        rows: Taken({repr(key): way_seconds(target, key, rows, scale.layer) for key in keys})
        for rows in (1, scale.many)
    }
    return {
        **page.speed_values(taken, dict.fromkeys(keys)),  # type: ignore[arg-type]  # of weights it reads the names
        **step_values(target, scale),
    }

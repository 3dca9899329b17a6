"""Counted are the products of a layer row by row, in one batch and padded to it, each with the weight that it reads;
which bits differ depends on the order in which a kernel sums, of which operations and bytes tell nothing."""

from __future__ import annotations

import torch
from torch import nn

from snippets.instruments.targets import Target
from snippets.models.decoder import Decoder
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.layers import fast_format, product_seconds
from snippets.predictions.reasons import LOGIT_GAP
from snippets.throughput.determinism import DTYPES, Scale

ORDER = "which bits differ between two orders of a sum, which a kernel chooses"


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale = Scale()
    compared = {"bf16": scale.bf16_every, "fp32": scale.fp32_every}
    found: dict[str, float | str] = {}
    for name in map(str.lower, DTYPES):
        found |= {
            f"{name}_alone_differing_share": ORDER,
            f"{name}_matrices_count": _matrices(),
            f"{name}_equal_matrices_count": ORDER,
            f"{name}_first_numbers_count": ORDER,
            f"{name}_step_differing_share": ORDER,
            f"{name}_parted_count": ORDER,
            f"{name}_sequences_count": len(range(0, scale.prompts, compared[name])),
            f"{name}_compared_tokens": ORDER,
            f"{name}_change_difference": ORDER,
            f"{name}_ties_count": LOGIT_GAP,
            f"{name}_untouched_tokens": ORDER,
        }
    return found | _prices(target, scale)


def _matrices() -> int:
    """Matrices that a token passes, the head among them."""
    with torch.device("meta"):
        return sum(isinstance(module, nn.Linear) for module in Decoder(SMOLLM2_135M).modules())


def _prices(target: Target, scale: Scale) -> dict[str, float | str]:
    """Row by row over the batch, and a padded lone row over a bare one; padding is a launch of its own."""

    def seconds(rows: int, launches: int = 1) -> float:
        return product_seconds(target, rows, scale.outputs, scale.columns, fast_format(target), launches)

    return {
        "rows_price_ratio": scale.rows * seconds(1) / seconds(scale.rows),
        "padded_price_ratio": seconds(scale.rows, launches=2) / seconds(1),
    }

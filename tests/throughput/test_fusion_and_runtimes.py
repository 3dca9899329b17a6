"""Bytes by formula and as counted agree on odd sizes; fusing changes no result; predictions follow from their terms."""

from __future__ import annotations

import pytest
import torch

from snippets.instruments.device import capabilities
from snippets.models.compiled import compiled_whole, counted, counted_compiled
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M
from snippets.throughput import fusion_and_runtimes as fusion
from tests.small import failing_small, measured_small

pytestmark = pytest.mark.models
QUESTION = "throughput/fusion_and_runtimes"
needs_compiler = pytest.mark.skipif("compiler" not in capabilities(), reason="torch.compile needs a C++ compiler")


def chain(rows: int, hidden: int, ffn: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    shapes = ((rows, hidden), (rows, hidden), (hidden,), (rows, ffn), (rows, ffn))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize(("rows", "hidden", "ffn"), [(1, 1, 1), (2, 3, 5), (7, 5, 3), (3, 64, 7)])
def test_bytes_by_formula_are_the_bytes_counted(rows: int, hidden: int, ffn: int) -> None:
    work = counted(fusion.glue, *chain(rows, hidden, ffn, torch.bfloat16))
    by_hand = fusion.glue_bytes(rows, hidden, ffn)
    assert work.calls.total() == 11
    assert work.bytes.total() == by_hand["eager"] == rows * (42 * hidden + 10 * ffn + 24) + 2 * hidden
    assert by_hand["least"] == rows * (8 * hidden + 6 * ffn) + 2 * hidden < by_hand["eager"]


@needs_compiler
def test_the_compiled_chain_is_the_chain() -> None:
    given = chain(3, 64, 7, torch.bfloat16)
    exact = fusion.glue(*(part.double() for part in given))
    for found in (fusion.glue(*given), compiled_whole(fusion.glue)(*given)):
        for part, wanted in zip(found, exact, strict=True):
            assert float((part.double() - wanted).abs().max()) <= 0.03 * float(wanted.abs().max())
    assert counted_compiled(fusion.glue, *given).bytes.total() >= fusion.glue_bytes(3, 64, 7)["least"]


def test_small_scale_values_hold_what_is_exact() -> None:
    assert failing_small(QUESTION) == []


def test_trap_fewer_kernels_and_no_fewer_products() -> None:
    values = measured_small(QUESTION)
    assert values["layer_compiled_count"] < values["layer_eager_count"]
    assert values["layer_compiled_products_count"] == values["layer_eager_products_count"] == 7
    assert values["compiled_step_count"] < values["plain_step_count"] < values["exported_nodes_count"]


def test_step_weights_are_what_a_step_reads() -> None:
    assert fusion.step_weights(LLAMA_3_8B) == 8_030_261_248 - 128_256 * 4096  # all but the table that is looked up
    assert fusion.step_weights(SMOLLM2_135M) == 134_515_008  # a tied embedding is the head


def test_a_graph_gains_what_launches_took_beyond_the_read() -> None:
    read = 2 * fusion.step_weights(LLAMA_3_8B) / 3.35e12
    assert fusion.predicted_seconds(LLAMA_3_8B, 16, 1) == pytest.approx(read)
    assert fusion.predicted_seconds(LLAMA_3_8B, 16, 10_000) == pytest.approx(0.04)
    few = fusion.prediction_columns({"layer_eager_count": 2, "layer_compiled_count": 1})
    assert few["graph_ratio"][:2] == [1, 1] and few["graph_ratio"][2] > 1  # launches that hide behind the read

"""A layer's and a model's seconds, against the page's own prediction for an H100 and against limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import TARGETS
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M
from snippets.predictions.throughput.prefill_and_decode import layer_launches, predict, step_launches, work_seconds
from snippets.throughput import prefill_and_decode as page

H100 = TARGETS["H100 SXM"]


def test_an_h100_takes_what_the_page_says() -> None:
    columns, tokens = page.predicted_columns(), page.Scale().prompt_tokens
    rows = zip(columns["model"], columns["phase"], columns["queued"], columns["step_seconds"], strict=True)
    told = {(model, phase, queued): seconds for model, phase, queued, seconds in rows}
    for geometry in (LLAMA_3_8B, SMOLLM2_135M):
        for phase, work in (("decode", page.work(geometry, 1, tokens - 1)), ("prefill", page.work(geometry, tokens))):
            for queued, launches in (("one by one", step_launches(geometry)), ("as a graph", 1)):
                seconds = work_seconds(H100, work, "bfloat16", launches)
                assert seconds == pytest.approx(told[geometry.name, phase, queued])


def test_a_row_costs_as_much_in_any_step_where_operations_bind() -> None:
    found = predict(replace(H100, bytes_per_second=1e30, launch_seconds=0))
    assert found["row_speed_ratio"] == pytest.approx(1, abs=0.02)  # attention alone grows
    assert found["short_step_ratio"] == pytest.approx(4, abs=0.01)


def test_rows_are_free_where_bytes_bind() -> None:
    found = predict(replace(H100, flops_per_second=dict.fromkeys(H100.flops_per_second, 1e30), launch_seconds=0))
    assert found["row_speed_ratio"] == pytest.approx(512, rel=0.01)  # their cache is read as well
    assert found["alone_read_share"] == pytest.approx(1, rel=0.01)


def test_a_layer_launches_a_products_number_and_what_lies_between() -> None:
    inside = layer_launches(page.LAYER)
    assert len(LLAMA_3_8B.linear_shapes) < inside <= step_launches(LLAMA_3_8B) / LLAMA_3_8B.layers

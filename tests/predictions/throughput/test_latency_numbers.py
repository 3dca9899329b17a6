"""The queue on predicted steps: as slow as its device, and flat where launches bind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import TARGETS
from snippets.models.shapes import LLAMA_3_8B
from snippets.predictions.layers import step_seconds
from snippets.predictions.throughput.latency_numbers import live, predict
from snippets.throughput.latency_numbers import Scale, predicted_values

H100 = TARGETS["H100 SXM"]
FREE = replace(H100, launch_seconds=0)


def test_an_h100_takes_what_the_page_says() -> None:
    told = predicted_values()
    batch, context = int(told["h100_batch_count"]), int(told["h100_context_tokens"])
    found = step_seconds(H100, LLAMA_3_8B, rows=batch, context=context, launches_per_layer=0)
    assert found == pytest.approx(told["h100_plain_seconds"])


def test_a_device_of_half_the_speed_takes_twice_the_time() -> None:
    rates = {name: rate / 2 for name, rate in FREE.flops_per_second.items()}
    slow = predict(replace(FREE, flops_per_second=rates, bytes_per_second=FREE.bytes_per_second / 2))
    fast = predict(FREE)
    for name in ("plain_step_seconds", "stalled_step_seconds", "fitted_prompt_seconds", "fitted_total_p99_seconds"):
        assert slow[name] == pytest.approx(2 * float(fast[name]), rel=0.02)  # ticks are whole microseconds
    assert slow["stall_ratio"] == pytest.approx(fast["stall_ratio"])


def test_nothing_stalls_where_launches_bind() -> None:
    found = predict(replace(H100, launch_seconds=1e-3))
    assert found["stall_ratio"] == 1
    assert found["fitted_base_seconds"] == pytest.approx(found["plain_step_seconds"], rel=1e-3)
    assert found["fitted_gap_p99_seconds"] == pytest.approx(found["plain_step_seconds"], rel=1e-3)


def test_every_request_is_prefilled_once_and_decoded_to_its_end() -> None:
    scale = Scale()
    found = live(H100, scale)
    prompts = [scale.prompts[i % len(scale.prompts)] for i in range(scale.count)]
    answers = [scale.answers[i % len(scale.answers)] for i in range(scale.count)]
    assert sum(prompt for _, prompt, _ in found.steps) == sum(prompts)
    assert sum(decoding for decoding, _, _ in found.steps) == sum(answers) - scale.count  # the first comes of a prompt
    assert found.lengths == [a + b - 1 for a, b in zip(prompts, answers, strict=True)]

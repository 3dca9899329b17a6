"""Machines differ in what they are told to, predictions agree with plain arithmetic, and each trap is shown wrong."""

from __future__ import annotations

import pytest
import torch

from snippets.instruments.datasheets import Peak
from snippets.instruments.device import capabilities, pick
from snippets.models.shapes import LLAMA_3_8B, parameters
from snippets.throughput import hardware
from snippets.throughput.hardware import MACHINES, MEMORY, OLDER, SMALL, Machine, Scale, Setting, Trial
from tests.small import controlled, measured_small

CPU = pick("cpu")
CARD = Peak(1000.0, 10.0, "made up")  # a ridge of a hundred operations a byte


@pytest.mark.parametrize(("outputs", "inner", "rows"), [(2, 3, 5), (7, 5, 3), (1, 1, 1)])
def test_machines_multiply_what_they_are_told(outputs: int, inner: int, rows: int) -> None:
    calls = hardware.products((outputs, inner), rows, torch.float32, CPU, 4 * 7)
    one, many = calls["one"](), calls["many"]()
    assert isinstance(one, torch.Tensor) and isinstance(many, torch.Tensor)
    assert many.shape == (rows, outputs) and torch.allclose(many[:1], one, atol=1e-5)
    assert calls["read"]() == 7


@pytest.mark.parametrize(("rows", "wanted"), [(1, 6 * 4 / 10), (1000, 2 * 1000 * 6 / 1000)])
def test_a_product_is_bound_by_bytes_or_by_operations(rows: int, wanted: float) -> None:
    fast_memory = Peak(1000.0, 1e9, "")
    peak = CARD if rows == 1 else fast_memory
    extra = rows * 5 * 4 / 10 if rows == 1 else 0
    assert hardware.predicted_seconds((2, 3), rows, peak, 4) == pytest.approx(wanted + extra)


def test_calibration_gives_back_the_device_that_made_the_times() -> None:
    shape = (3, 7)
    seconds = {1: 2 * 21 / CARD.bytes_per_second, 5000: 2 * 5000 * 21 / CARD.flops_per_second, 40: 0.0}
    found = hardware.calibrated(shape, seconds, 2)
    assert found.flops_per_second == pytest.approx(CARD.flops_per_second)
    assert found.bytes_per_second == pytest.approx(CARD.bytes_per_second)


def test_trap_operations_alone_mispredict_what_is_a_read() -> None:
    found = [Trial("read", 10.0, 0.5, 12.0), Trial("product", 10.0, 10.0, 8.0)]
    values = hardware.tested_values(found)
    assert values["worst_ratio"] == pytest.approx(1.25)
    assert values["operations_worst_ratio"] == 24
    assert hardware.tested_values(found, by_operations=True)["worst_ratio"] == 24


def test_a_chart_starts_with_the_line_of_equal_times() -> None:
    columns = hardware.tested_columns([Trial("a", 3.0, 0, 4.0), Trial("b", 1.0, 0, 2.0), Trial("a", 2.0, 0, 2.0)])
    assert columns["predicted_seconds"] == [1.0, 3.0, 3.0, 1.0, 2.0]
    assert columns["measured_seconds"] == [1.0, 3.0, 4.0, 2.0, 2.0]


@pytest.mark.parametrize("card", list(MEMORY))
def test_floors_follow_from_the_datasheet(card: str) -> None:
    peak, floor, weights = hardware.peak(card), hardware.floor_of(card, 7), 2 * parameters(LLAMA_3_8B).total
    layers, head = parameters(LLAMA_3_8B).linear, LLAMA_3_8B.vocabulary * LLAMA_3_8B.hidden
    assert floor.token_seconds == pytest.approx((2 * (layers + head) + 7 * 131_072) / peak.bytes_per_second)
    assert floor.users_count == max(0, (MEMORY[card] * 10**9 - weights) // (7 * 131_072))
    long = hardware.floor_of(card, 4096)
    assert long.prompt_seconds == pytest.approx((2 * 4096 * layers + 2 * head) / peak.flops_per_second)


def test_a_full_card_reads_nearly_all_its_memory() -> None:
    floor, peak = hardware.floor_of("H200 SXM"), hardware.peak("H200 SXM")
    step = floor.users_count / floor.full_tokens_per_second
    assert 0.97 < step / (MEMORY["H200 SXM"] * 10**9 / peak.bytes_per_second) < 1


def test_trap_a_card_with_more_operations_and_the_same_gain_in_decode() -> None:
    gains = dict(zip(hardware.card_columns()["card"], hardware.card_columns()["decode_ratio"], strict=True))
    prefill = dict(zip(hardware.card_columns()["card"], hardware.card_columns()["prefill_ratio"], strict=True))
    assert prefill["H200 SXM"] == prefill["H100 SXM"] and gains["H200 SXM"] > 1.4 * gains["H100 SXM"]
    assert prefill["TPU v6e"] > 2 and gains["TPU v6e"] < 1
    assert hardware.floor_of("TPU v5e").full_tokens_per_second == 0


def test_a_machine_that_cannot_start_says_so() -> None:
    machine = Machine(Setting(0), SMALL)  # no threads
    with pytest.raises(RuntimeError, match="ended"):
        machine.wait()
    machine.stop()


@pytest.mark.timing
def test_the_older_machine_computes_less_and_is_bounded_lower() -> None:
    scale = Scale((64, 32), ((32, 32),), (1, 17), 2**16, 2**20, 3)
    settings = {name: MACHINES[name] for name in (OLDER, hardware.NEWER)}
    columns = hardware.device_columns(hardware.time_machines(settings, scale), settings, scale)
    assert columns["device"][:2] == list(settings)
    bounds = [
        rate / share for rate, share in zip(columns["many_flops_per_second"], columns["compute_share"], strict=True)
    ]
    better = capabilities("cpu") & {"avx512-bf16", "amx-bf16"}
    assert (bounds[1] > 1.5 * bounds[0]) == bool(better)
    assert all(0 < share <= 1 for share in columns["compute_share"])


@pytest.mark.timing
def test_what_is_small_gains_nothing_and_what_is_large_does() -> None:
    assert measured_small("throughput/hardware")["tiny_ratio"] > 2 * controlled("throughput/hardware")["tiny_ratio"]

"""Inference speed: work agrees with what layers do on odd sizes, claims can fail, each trap is shown wrong."""

from __future__ import annotations

import math
import time
from functools import partial
from itertools import pairwise

import pytest
import torch

from snippets.instruments.clock import BeyondPeakError
from snippets.instruments.datasheets import gpu_peak
from snippets.models.products import Int8Linear
from snippets.models.quantized import quantize_groups_int4, quantize_rows_int8
from snippets.quantization import inference_speed as snippet
from tests.small import failing_small, measured_small

CPU = torch.device("cpu")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# The ways, and their work.


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7])
def test_every_way_computes_the_same_layer(rows: int) -> None:
    weight, x = random(48, 128), random(rows, 128).bfloat16()
    exact = x.float() @ weight.T
    for name, way in snippet.ways(weight, torch.bfloat16).items():
        error = float((way(x).float() - exact).norm() / exact.norm())
        assert error < (0.15 if name == "int4" else 0.02), name
    assert snippet.ways(weight, torch.bfloat16).keys() == snippet.NAMES.keys()


@pytest.mark.parametrize(("rows", "outputs", "columns"), [(1, 3, 5), (2, 7, 3), (5, 2, 7)])
def test_work_is_what_the_counters_see(rows: int, outputs: int, columns: int) -> None:
    weight, x = random(outputs, columns), random(rows, columns).bfloat16()
    layers = snippet.ways(weight.repeat(1, 128), torch.bfloat16)
    wide = x.repeat(1, 128)
    plain = Int8Linear(quantize_rows_int8(weight), torch.bfloat16, plain=True)
    asked = (rows, outputs, columns)
    assert snippet.counted(plain, x) == snippet.work("int8", *asked)[:2]
    for way in ("bf16", "naive"):
        flops, extra = snippet.counted(layers[way], wide)
        wanted = snippet.work(way, rows, outputs, 128 * columns)
        assert (flops, extra) == (wanted.flops, wanted.extra)
    assert len({snippet.work(way, *asked).flops for way in snippet.NAMES}) == 1


def test_trap_a_profiler_does_not_see_a_packed_product() -> None:
    packed, x = Int8Linear(quantize_rows_int8(random(64, 64)), torch.bfloat16), random(3, 64).bfloat16()
    assert packed.path != "plain"
    assert snippet.counted(packed, x)[0] == 0 < snippet.work("int8", 3, 64, 64).flops


@pytest.mark.parametrize("outputs", [2, 3, 5, 7])
def test_bytes_are_those_of_the_storage(outputs: int) -> None:
    weight = random(outputs, 384)
    layer = Int8Linear(quantize_rows_int8(weight), torch.bfloat16, plain=True)
    assert snippet.work("int8", 1, outputs, 384).weight_bytes == layer.nbytes
    assert snippet.work("int4", 1, outputs, 384).weight_bytes == quantize_groups_int4(weight, 128).nbytes
    assert snippet.work("bf16", 1, outputs, 384).weight_bytes == weight.bfloat16().nbytes
    x = random(5, 384).bfloat16()
    moved = x.nbytes + (x @ weight.bfloat16().T).nbytes
    assert snippet.work("bf16", 5, outputs, 384).activation_bytes == moved


# Curves.


def curves_of(speed: dict[int, float]) -> snippet.Curves:
    points = {("int8", n): s for n, s in speed.items()} | {("bf16", n): 1.0 for n in speed}
    return snippet.Curves({point: 1 / s for point, s in points.items()}, points, 1e9, {"bf16": 1e9}, sorted(speed))


def test_the_crossover_lies_where_the_curve_meets_bf16() -> None:
    assert curves_of({1: 2.0, 16: 0.5}).crossover("int8") == pytest.approx(4)
    assert curves_of({1: 4.0, 4: 2.0, 16: 1.0, 64: 0.5}).crossover("int8") == pytest.approx(16)
    assert curves_of({1: 4.0, 4: 2.0}).crossover("int8") == 4
    assert curves_of({1: 0.5, 4: 0.2}).crossover("int8") == 1
    assert curves_of({1: 2.0, 16: 0.5}).against("int8", "bf16", 16) == 0.5


@pytest.mark.timing
def test_a_layer_that_does_not_do_its_work_is_refused() -> None:
    idle: snippet.Ways = dict.fromkeys(snippet.NAMES, lambda x: x)
    scale = snippet.Scale((14336, 4096), (512,), (), rounds=3, long_rounds=3)
    with pytest.raises(BeyondPeakError):
        snippet.curves(idle, scale, CPU)


# The caches.


def rates_of(cache: int, fall: float) -> dict[tuple[str, int], float]:
    """A machine that multiplies a weight of any format as fast while its bytes fit, and `fall` times slower beyond."""
    sizes = [2**k for k in range(18, 28)]
    return {(name, size): 1e9 if size <= cache else 1e9 / fall for name in ("FP32", "INT8") for size in sizes}


def test_the_step_moves_by_the_bytes_of_a_weight() -> None:
    found = snippet.step_values(rates_of(2**25, 2.0), 2**25)
    assert found["step_moved_ratio"] == pytest.approx(4)
    assert found["fp32_step_count"] == pytest.approx(2**25.5 / 4)
    alike = snippet.step_values(rates_of(2**25, 2.0), 2**25, ("FP32", "FP32"))
    assert alike["step_moved_ratio"] == 1


def test_sizes_reach_from_the_second_level_beyond_the_last() -> None:
    cache, sizes = snippet.sweep_sizes(snippet.Scale(), CPU)
    assert sizes == sorted(sizes) and sizes[-1] == pytest.approx(min(4 * cache, 2**30), rel=0.01)
    assert all(b / a == pytest.approx(2, rel=0.3) for a, b in pairwise(sizes))
    assert sizes[0] >= 4 * snippet.Scale().sweep_columns  # one row of FP32 at least


@pytest.mark.timing
def test_the_sweep_multiplies_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        snippet.operators, "int8_weight_product", lambda x, codes, scales: seen.append((codes.numel(), len(scales)))
    )
    found = snippet.sweep(1024, [2**20, 2**21], ("FP32", "INT8"), CPU, 3)
    assert {count for count, _ in seen} == {2**20, 2**21}
    assert all(rows * 1024 == count for count, rows in seen)
    assert set(found) == {(name, size) for name in ("FP32", "INT8") for size in (2**20, 2**21)}
    assert all(1e7 < found["FP32", size] < 1e12 for size in (2**20, 2**21))


def test_repeats_are_all_run() -> None:
    ran: list[float] = []
    snippet._repeat(partial(ran.append, time.time()), 7)
    assert len(ran) == 7


# Errors, predictions.


@pytest.mark.models
def test_errors_grow_with_what_is_rounded_and_vanish_without() -> None:
    weight, x = snippet.real_layer()
    assert x.shape[1] == weight.shape[1] and len(x) > 32
    assert (x < 0).any() and x.min() > -0.2  # behind a GELU
    found = snippet.error_values(weight, x)
    assert 0 < found["int8_error_share"] < found["w8a8_error_share"] < found["int4_error_share"] < 0.1
    grid = torch.randint(-7, 8, (3, 128)).float()
    grid[:, 0] = 7
    on_grid = snippet.error_values(grid, torch.tensor([[127.0, -5.0] * 64]))
    assert on_grid["int4_error_share"] < 1e-6 and on_grid["w8a8_error_share"] < 0.01


def test_predictions_by_hand() -> None:
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    layer = (14336, 4096)
    seconds, bound = snippet.predicted("bf16", 1, layer)
    assert bound == "bytes"
    assert seconds == pytest.approx((2 * 14336 * 4096 + 2 * (14336 + 4096)) / 3.35e12)
    seconds, bound = snippet.predicted("bf16", 512, layer)
    assert bound == "operations" and seconds == pytest.approx(2 * 512 * 14336 * 4096 / 989.4e12)
    assert snippet.predicted("w8a8", 1, (1536, 576)) == (2 * snippet.LAUNCH_SECONDS, "launches")
    assert snippet.predicted("int4", 512, layer)[0] > seconds > snippet.predicted("w8a8", 512, layer)[0]


def test_prediction_table_agrees_with_the_values_of_claims() -> None:
    columns, values = snippet.prediction_columns(), snippet.prediction_values()
    assert columns["int4_ratio"][0] == values["h100_one_int4_ratio"] > 3
    assert columns["int4_ratio"][1] == values["h100_many_int4_ratio"]
    assert columns["w8a8_ratio"][2] == values["h100_little_w8a8_ratio"]
    assert columns["layer"][1:3] == ["Llama-3-8B", "SmolLM2-135M"]
    assert math.isclose(columns["bf16_seconds"][3], snippet.LAUNCH_SECONDS)


# The page.


@pytest.mark.models
@pytest.mark.timing
def test_exact_claims_hold_at_small_scale() -> None:
    assert failing_small("quantization/inference_speed") == []
    found = measured_small("quantization/inference_speed")
    assert found["fresh_naive_ratio"] > 0 and found["confound_ratio"] > 0

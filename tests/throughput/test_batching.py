"""What does batching buy and cost? Work against counters, batch against single, simulator against queueing theory."""

from __future__ import annotations

import dataclasses
import functools
from statistics import fmean

import pytest
import torch

from snippets.instruments.clock import BeyondPeakError
from snippets.instruments.device import cache_bytes
from snippets.models import shapes, smollm2
from snippets.models.decoder import Decoder, generate, random_block
from snippets.throughput import batching as snippet
from tests.odd import ODD, odd_decoder, odd_ids
from tests.small import measured_small

CPU = torch.device("cpu")
ODD_LAYER = dataclasses.replace(ODD, layers=1)


@pytest.fixture(scope="module")
def odd() -> Decoder:
    return odd_decoder()


# What a step does.


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("context", [2, 7])
def test_formula_equals_pytorchs_own_count_of_flops_on_odd_sizes(batch: int, context: int) -> None:
    assert snippet.counted(ODD_LAYER, batch, context)[0] == snippet.step_work(ODD_LAYER, batch, context, 4).flops > 0


def test_calls_depend_neither_on_batch_nor_on_width() -> None:
    calls = {snippet.counted(geometry, batch, 5)[1] for geometry in (ODD_LAYER, snippet.LAYER) for batch in (1, 3, 64)}
    assert len(calls) == 1
    assert calls.pop() > 7  # at least the matrices


def test_bytes_equal_the_storage_of_weights_and_caches(odd: Decoder) -> None:
    work = snippet.step_work(ODD, batch=5, context=7, element_bytes=4, head=True)
    matrices = {id(weight): weight.nbytes for weight in odd.parameters() if weight.ndim == 2}
    assert work.weight_bytes == sum(matrices.values())  # tied: the head is the embedding, read once
    cache = snippet.KVCache(ODD, 5, 7, torch.float32)
    assert work.cache_bytes == cache.nbytes
    without_head = snippet.step_work(ODD, 5, 7, 4)
    assert work.weight_bytes - without_head.weight_bytes == odd.lm_head.weight.nbytes


def test_matrix_bytes_leaves_out_norms() -> None:
    block = random_block(ODD_LAYER, torch.bfloat16)
    assert snippet.matrix_bytes(block) == snippet.step_work(ODD_LAYER, 1, 1, 2).weight_bytes


def test_intensity_rises_with_batch_towards_that_of_the_caches() -> None:
    found = [snippet.step_work(snippet.LAYER, batch, 1024, 2).flops_per_byte for batch in (1, 8, 64, 512, 10**7)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(1, rel=0.05)  # BF16: two operations for the two bytes of a weight
    one = snippet.step_work(snippet.LAYER, 1, 1024, 2)
    assert found[-1] == pytest.approx(one.flops / one.cache_bytes, rel=1e-3)


def test_trap_two_contexts_are_not_one_batch() -> None:
    short, long = (snippet.step_work(snippet.LAYER, 64, context, 2) for context in (256, 4096))
    assert long.weight_bytes == short.weight_bytes
    assert long.cache_bytes == 16 * short.cache_bytes > long.weight_bytes > short.cache_bytes


def test_trap_the_timed_layer_does_not_fit_into_a_cache_and_a_small_one_may() -> None:
    largest = max(cache_bytes(CPU).values(), default=2**25)
    assert snippet.step_work(snippet.LAYER, 1, 1, 2).weight_bytes > largest
    small = dataclasses.replace(shapes.SMOLLM2_135M, layers=1)
    assert snippet.step_work(small, 1, 1, 2).weight_bytes < 2**25


# A batch changes nothing but the time.


def test_rows_of_a_batch_write_what_each_writes_alone(odd: Decoder) -> None:
    found = snippet.equal_values(odd, odd_ids(5, 3), new_tokens=7, every=2)
    assert found["checked_tokens"] == found["equal_tokens"] == 3 * 7
    assert found["smallest_gap_difference"] > 1e-4


def test_rows_that_are_not_kept_apart_are_seen(odd: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_row_for_all(decoder: Decoder, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
        return generate(decoder, ids[:1], new_tokens).expand(len(ids), -1)

    monkeypatch.setattr(snippet, "generate", first_row_for_all)
    found = snippet.equal_values(odd, odd_ids(5, 3), new_tokens=7, every=2)
    assert 0 < found["equal_tokens"] < found["checked_tokens"]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_timed_step_writes_the_second_token_however_often_it_runs(odd: Decoder, batch: int) -> None:
    ids = odd_ids(5, 3)
    step = snippet.model_steps(odd, ids, [batch])[batch]
    wanted = generate(odd, ids[:batch], 2)[:, 1]
    assert all(torch.equal(step(), wanted) for _ in range(3))  # type: ignore[arg-type]


def test_timed_steps_of_all_batches_stand_at_the_same_context(odd: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = Decoder.forward

    def watched(self: Decoder, ids: torch.Tensor, cache: snippet.KVCache, **options: bool) -> torch.Tensor:
        seen.append((len(ids), cache.length))
        return forward(self, ids, cache, **options)

    steps = snippet.model_steps(odd, odd_ids(5, 3), [1, 5])
    monkeypatch.setattr(Decoder, "forward", watched)
    for step in (steps[1], steps[5], steps[1]):
        step()
    assert seen == [(1, 3), (5, 3), (1, 3)]


@pytest.mark.models
def test_prompts_are_different_pieces_of_the_text() -> None:
    ids = snippet.prompts(5, 7, CPU)
    assert ids.shape == (5, 7)
    assert len({tuple(row) for row in ids.tolist()}) == 5
    assert torch.equal(ids.flatten(), smollm2.encode(snippet.texts.address())[0, :35])


def test_the_thin_model_launches_what_the_real_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Decoder] = []
    real = snippet.model_steps

    def keep(decoder: Decoder, ids: torch.Tensor, batches: list[int]) -> snippet.Steps:
        kept.append(decoder)
        return real(decoder, ids, batches)

    monkeypatch.setattr(snippet, "model_steps", keep)
    assert snippet.launch_seconds(CPU, rounds=3) > 0
    thin = kept[0].geometry
    assert thin.layers == smollm2.GEOMETRY.layers
    assert thin.heads == smollm2.GEOMETRY.heads and thin.kv_heads == smollm2.GEOMETRY.kv_heads
    assert shapes.parameters(thin).total < shapes.parameters(smollm2.GEOMETRY).total / 500


# The curve.


def curve_of(ratios: dict[int, float]) -> snippet.Curve:
    return snippet.Curve({b: 0.5 * r for b, r in ratios.items()}, ratios, 1e9, 2e9, threads=2)


def test_the_knee_is_the_last_batch_under_two_steps() -> None:
    assert curve_of({1: 1.0, 2: 1.1, 4: 1.9, 8: 2.0, 16: 5.0}).knee == 4
    assert curve_of({1: 1.0, 2: 0.9, 4: 1.0}).knee == 4
    assert curve_of({1: 1.0, 2: 2.0, 4: 4.0}).knee == 1


def test_columns_of_a_curve_agree_with_each_other() -> None:
    curve, work = curve_of({1: 1.0, 4: 2.0}), snippet.works(ODD, (1, 4), 7, torch.float32)
    columns = snippet.curve_columns(curve, work)
    assert columns["speed_tokens_per_second"] == [2.0, 4.0]
    assert columns["bytes_seconds"] == [(w.weight_bytes + w.cache_bytes) / 1e9 for w in work.values()]
    assert columns["flops_seconds"] == [w.flops / 2e9 for w in work.values()]
    assert snippet.ratio_values("x", curve) == {"x_speed_ratio": 2.0, "x_step_ratio": 2.0}
    assert snippet.shown_values("x", curve)["x_ridge_flops_per_byte"] == 2.0


@pytest.mark.timing
def test_a_step_that_does_not_do_its_work_is_refused() -> None:
    work = snippet.works(snippet.LAYER, (1, 512), 256, torch.bfloat16)
    idle: snippet.Steps = dict.fromkeys(work, lambda: None)
    with pytest.raises(BeyondPeakError):
        snippet.curve(idle, work, torch.bfloat16, CPU, rounds=3)


def test_one_by_one_runs_the_single_step_for_every_row() -> None:
    ran: list[int] = []
    looped = snippet.one_by_one({batch: functools.partial(ran.append, batch) for batch in (1, 5)})
    looped[5]()
    assert ran == [1] * 5


# The queue.


def test_runs_worked_out_by_hand() -> None:
    def seconds(batch: int) -> float:
        return 10.0 + batch

    # one at a time: 0→11, 11→22, 22→33, 100→111
    assert snippet.latencies([0, 1, 2, 100], seconds) == [11, 21, 31, 11]
    # all who wait: the first alone 0→11, the next two together 11→23, the last alone
    assert snippet.latencies([0, 1, 2, 100], seconds, most=8) == [11, 22, 21, 11]
    # a window of 4: three start together at 4→17, the last waits in vain 104→115
    assert snippet.latencies([0, 1, 2, 100], seconds, most=8, window_seconds=4) == [17, 16, 15, 15]
    # full before the window ends: two start at 1→13; the third waits out its window 13→24
    assert snippet.latencies([0, 1, 2, 100], seconds, most=2, window_seconds=4) == [13, 12, 22, 15]
    assert snippet.latencies([], seconds) == []


def test_equal_arrivals_go_together_and_none_is_lost() -> None:
    assert snippet.latencies([5, 5, 5, 5, 5], lambda batch: 1.0, most=2) == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(("load", "wait"), [(0.2, 0.125), (0.5, 0.5), (0.8, 2.0)])
def test_one_at_a_time_is_an_m_d_1_queue(load: float, wait: float) -> None:
    """Mean wait = load / (2 (1 - load)) services. Waits are correlated over about 1 / (1 - load)² services, so a run
    holds 10,000 stretches of their own or more: a standard error under 2 %, of which three are allowed."""
    assert load / (2 * (1 - load)) == pytest.approx(wait)
    for seed in (1, 2, 3):
        taken = snippet.latencies(snippet.poisson(load, 250_000, seed), lambda batch: 1.0)
        assert fmean(taken) - 1 == pytest.approx(wait, rel=0.06)


def test_poisson_arrivals_ascend_at_their_rate_and_repeat() -> None:
    times = snippet.poisson(4.0, 20_000, seed=5)
    assert times == sorted(times) and len(times) == 20_000
    assert times == snippet.poisson(4.0, 20_000, seed=5) != snippet.poisson(4.0, 20_000, seed=6)
    assert times[-1] == pytest.approx(5_000, rel=0.05)


def test_steps_between_measured_batches_lie_on_straight_lines() -> None:
    measured = {1: 1.0, 2: 1.0, 8: 4.0}
    assert [snippet.between(measured, batch) for batch in (1, 2, 4, 5, 8)] == [1.0, 1.0, 2.0, 2.5, 4.0]


def test_free_batches_help_the_busy_alone_and_waiting_hurts_the_idle() -> None:
    free = {1: 1.0, 64: 1.0}
    found = snippet.queue_values(snippet.load_columns(free, (0.2, 2.0), 4, 1024))
    assert 0.8 < found["idle_together_ratio"] <= 1
    assert found["idle_waited_ratio"] > 3
    assert found["busy_gain_ratio"] > 50 and found["busy_p99_gain_ratio"] > 50


def test_batches_that_cost_their_rows_help_nobody() -> None:
    loop = {1: 1.0, 64: 64.0}
    found = snippet.queue_values(snippet.load_columns(loop, (0.2, 2.0), 4, 1024, window=0.0))
    assert found["idle_together_ratio"] == pytest.approx(1, abs=0.1)
    assert found["idle_waited_ratio"] == found["idle_together_ratio"]
    assert found["busy_gain_ratio"] < 1.05 and found["busy_p99_gain_ratio"] < 1.05


@pytest.mark.parametrize("most", [1, 2, 3])
def test_littles_law_counts_the_same_seconds(most: int) -> None:
    found = snippet.little_values([0, 1, 1, 4, 9], batch_seconds=3, most=most)
    assert found["inside_seconds"] == found["latencies_seconds"] > 0
    assert snippet.little_values([0, 5], 3, 1) == {"inside_seconds": 6, "latencies_seconds": 6, "busiest_count": 1}


# The page.


@pytest.mark.timing
@pytest.mark.models
def test_a_small_measurement_has_its_exact_values() -> None:
    found = measured_small("throughput/batching")
    assert found["equal_tokens"] == found["checked_tokens"] > 0
    assert found["layer_storage_bytes"] == found["layer_weight_bytes"]
    assert found["added_calls_count"] == 0
    assert found["layer_speed_ratio"] > 1.5  # a batch of four, not looped

"""Early exit: rules, baseline, serving and drafting each agree with a slow second way, and each trap is shown wrong."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from snippets.models.decoder import Decoder, KVCache, generate, initialize
from snippets.models.shapes import LLAMA_2_7B, LLAMA_3_8B, SMOLLM2_135M
from snippets.throughput import early_exit as ee
from tests.odd import ODD, odd_ids
from tests.small import measured_small

DEEP = replace(ODD, layers=5)
STOPS = (2, 3)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    built = Decoder(DEEP)
    initialize(built, seed=3, std=0.3)
    return built.requires_grad_(False).eval()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Exits and layers of the odd decoder."""
    monkeypatch.setattr(ee, "EXITS", STOPS)
    monkeypatch.setattr(ee, "LAYERS", DEEP.layers)
    yield


def some_exit(seed: int) -> ee.Exit:
    maker = torch.Generator().manual_seed(seed)
    matrix, bias, trust = (torch.randn(*size, generator=maker) for size in ((35, 35), (35,), (36,)))
    return ee.Exit(matrix, bias, trust)


def one_by_one(decoder: Decoder, ids: Tensor, heads: dict[int, ee.Exit]) -> tuple[list[int], list[int]]:
    """Choices and depths by serving token after token: who left writes keys and values from its last state."""
    cache = KVCache(DEEP, 1, ids.shape[1], torch.float32)
    choices: list[int] = []
    depths: list[int] = []
    for token in ids[0, :-1]:
        x = decoder.embed_tokens(token.view(1, 1))
        cos, sin = ee.rotation(DEEP, cache.length, 1, x)
        left: tuple[int, int] | None = None
        for layer, block in enumerate(decoder.layers, 1):
            after = block(x, cos, sin, cache, layer - 1)  # writes keys and values of x, whoever uses the rest
            x = x if left else after
            if left is None and layer in heads:
                best = heads[layer].logits(decoder, x)[0, 0].softmax(-1).max(-1)
                left = (int(best.indices), layer) if float(best.values) > ee.LIMIT else None
        cache.length += 1
        choice, depth = left or (int(ee.own(decoder).logits(decoder, x)[0, 0].argmax()), DEEP.layers)
        choices.append(choice)
        depths.append(depth)
    return choices, depths


def test_serving_layer_by_layer_is_serving_token_by_token(decoder: Decoder) -> None:
    heads, ids = {stop: some_exit(stop) for stop in STOPS}, odd_ids(1, 14)
    choice, nats, depth = ee.leave(decoder, ids, heads)
    choices, depths = one_by_one(decoder, ids, heads)
    assert depth[0].tolist() == depths and choice[0].tolist() == choices
    assert set(depths) == {2, 3, 5} and bool((nats > 0).all())


def test_the_gap_in_the_cache_changes_what_others_say_and_filling_it_does_not(decoder: Decoder, few: None) -> None:
    heads, ids = {stop: some_exit(stop) for stop in STOPS}, odd_ids(3, 14)
    reading = ee.read(decoder, ids, [*heads.values()])
    place, _ = ee.ask(reading, ee.LIMIT)
    choice, nats, depth = ee.leave(decoder, ids, heads, copied=False)
    torch.testing.assert_close(choice, ee.taken(reading.choice, place))
    torch.testing.assert_close(nats, ee.taken(reading.nats, place), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(depth, ee.depths(place))
    served = ee.leave(decoder, ids, heads)
    assert not torch.equal(served[1], nats)


def test_at_the_end_a_reading_is_the_model(decoder: Decoder, few: None) -> None:
    ids = odd_ids(2, 9)
    reading = ee.read(decoder, ids, [ee.own(decoder)] * len(STOPS))
    chances = decoder(ids[:, :-1]).log_softmax(-1)
    torch.testing.assert_close(reading.nats[-1].float(), -chances.gather(-1, ids[:, 1:, None])[..., 0])
    assert torch.equal(reading.choice[-1], chances.argmax(-1)) and bool((reading.agreed[-1] == 1).all())
    short = copy.copy(decoder)
    short._modules = {**decoder._modules, "layers": decoder.layers[:2]}
    assert torch.equal(reading.choice[0], short(ids[:, :-1]).argmax(-1))


def test_first_sure_by_looking_at_one_exit_after_another() -> None:
    score = torch.rand(4, 3, 7, generator=torch.Generator().manual_seed(1))
    place = ee.first_sure(score, 0.6)
    for window, position in itertools.product(range(3), range(7)):
        sure = [i for i in range(3) if score[i, window, position] > 0.6]
        assert int(place[window, position]) == (sure[0] if sure else 3)
    assert bool((score < 2).all()) and bool((ee.first_sure(score, 2.0) == 3).all())


def test_the_coin_by_tossing_it() -> None:
    values = torch.rand(8, 1, 5000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    runs = torch.rand(5000, generator=torch.Generator().manual_seed(3)) < 0.3
    tossed = torch.where(runs, values[-1, 0], values[0, 0])
    layers = 4 + 0.3 * 26
    assert float(ee.coin(values, layers).mean()) == pytest.approx(float(tossed.mean()), abs=0.02)
    assert torch.equal(ee.coin(values, 30.0), values[-1]) and torch.equal(ee.coin(values, 4.0), values[0])


def test_trap_a_fixed_exit_is_a_weak_baseline() -> None:
    """Agreement that rises at the end only: a coin of the same depth keeps far more than the exit in the middle."""
    agreed = torch.tensor([0.3, 0.3, 0.3, 0.3, 0.3, 0.4, 0.6, 1.0]).view(-1, 1, 1).expand(-1, 1, 10)
    assert float(ee.coin(agreed, 24.0).mean()) > float(agreed[5].mean()) + 0.3


def test_ridge_regression_finds_an_affine_map() -> None:
    maker = torch.Generator().manual_seed(4)
    x, true, bias = (torch.randn(*size, generator=maker) for size in ((70, 5), (5, 3), (3,)))
    matrix, offset = ee.least_squares(x, x @ true + bias, 1e-9)
    torch.testing.assert_close(matrix, true, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(offset, bias, atol=1e-4, rtol=1e-4)
    shrunk, _ = ee.least_squares(x, x @ true + bias, 100.0)
    assert float(shrunk.norm()) < 0.1 * float(true.norm())


def test_a_fit_reads_states_better_than_the_models_own_head(decoder: Decoder, few: None) -> None:
    ids = odd_ids(6, 60)
    fitted = ee.fit(decoder, ids[:5], ids[5:])
    heads = [ee.Exit(*(fitted[f"{stop}.{part}"] for part in ("matrix", "bias", "trust"))) for stop in STOPS]
    seen = ee.states(decoder, ids[:5], (*STOPS, DEEP.layers))
    wanted = decoder.norm(seen[-1])
    for stop, head, state in zip(STOPS, heads, seen, strict=False):
        read = ee.normed(state) @ head.matrix + head.bias
        assert float((read - wanted).norm()) < 0.9 * float((decoder.norm(state) - wanted).norm()), stop


@pytest.mark.parametrize(("exit_layer", "gamma"), [(1, 1), (2, 3), (4, 5)])
def test_a_draft_of_the_first_layers_writes_what_plain_decoding_writes(
    decoder: Decoder, exit_layer: int, gamma: int
) -> None:
    prompt = odd_ids(1, 7)[0].tolist()
    plain = generate(decoder, torch.tensor([prompt]), 13)[0].tolist()
    for head in (ee.own(decoder), some_exit(1)):
        run = ee.draft_itself(decoder, head, exit_layer, prompt, 13, gamma)
        assert run.tokens[:13] == plain
        assert run.steps <= 13 and 0 <= run.accepted <= run.looked <= run.steps * gamma


def test_a_draft_that_is_right_is_kept_whole(decoder: Decoder) -> None:
    """All layers but none left to check: every proposal is the model's own token."""
    prompt = odd_ids(1, 7)[0].tolist()
    run = ee.draft_itself(decoder, ee.own(decoder), DEEP.layers, prompt, 12, 3)
    assert run.steps == 4 and run.accepted == run.looked == 12


def test_trap_unchecked_exits_write_something_else(decoder: Decoder) -> None:
    prompt = odd_ids(1, 7)
    short = copy.copy(decoder)
    short._modules = {**decoder._modules, "layers": decoder.layers[:2]}
    short.geometry = replace(DEEP, layers=2)
    assert generate(short, prompt, 13).tolist() != generate(decoder, prompt, 13).tolist()


def test_price_of_a_check_from_the_weights_themselves() -> None:
    whole = ee.model()
    layer = sum(p.numel() for p in whole.layers[7].parameters() if p.ndim > 1)
    assert whole.lm_head.weight.numel() / layer == ee.price(SMOLLM2_135M) == 8
    assert ee.price(LLAMA_2_7B) < 1 < ee.price(LLAMA_3_8B)


@pytest.mark.parametrize("geometry", [SMOLLM2_135M, LLAMA_3_8B], ids=lambda g: g.name)
def test_what_must_leave_for_one_look_to_pay(geometry: ee.Geometry) -> None:
    share, each, early = ee.leaving_to_pay(geometry), ee.price(geometry), ee.early(geometry)
    read = share * (early + each) + (1 - share) * (geometry.layers + 2 * each)
    assert read == pytest.approx(geometry.layers + each)


def test_what_a_draft_reads_by_counting_a_step() -> None:
    """Three drafts of four layers and the head, then the other layers and the head once, for two tokens."""
    step = 3 * (4 + 8) + 26 + 8
    assert ee.draft_read_ratio(4, 3, 2.0, SMOLLM2_135M, 8.0) == pytest.approx(step / 2 / 38)


def test_the_deepest_row_by_drawing_batches() -> None:
    depth = torch.tensor([4.0] * 3 + [16.0] * 2 + [30.0] * 5)
    place = torch.tensor([0] * 3 + [3] * 2 + [7] * 5).view(1, -1)
    sure = torch.zeros(8, 1, 10)
    sure.scatter_(0, place[None], 1.0)
    reading = ee.Reading(sure, sure, sure, sure, sure[0])
    columns = ee.batch_columns(reading, (1, 3))
    drawn = depth[torch.randint(10, (20000, 3), generator=torch.Generator().manual_seed(6))].max(1).values
    assert columns["deepest_count"][0] == pytest.approx(float(depth.mean()))
    assert columns["deepest_count"][1] == pytest.approx(float(drawn.mean()), abs=0.2)
    assert columns["whole_share"] == pytest.approx([0.5, 1 - 0.5**3])


def test_weights_read_agree_with_layers_and_looks() -> None:
    values = measured_small("throughput/early_exit")
    assert ee.read_share(30, 1) == 1
    counted = (values["ask_layers_count"] + 8 * values["ask_checks_count"]) / 38
    assert values["ask_read_ratio"] == pytest.approx(counted) and counted > 1
    assert values["draft_equal_tokens"] == values["draft_compared_tokens"] > 0

"""Are LLMs redundant, and robust? Each change by hand on odd sizes, models left as they were, the trap shown."""

from __future__ import annotations

import pytest
import torch

from snippets.models import smollm2, trained
from snippets.models.language_loss import calibration_windows
from snippets.models.rounding import Scheme, matrices
from snippets.quantization import redundancy_and_robustness as snippet
from tests.small import controlled, measured_small

pytestmark = pytest.mark.models


@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (3, 7)])
def test_changes_by_hand(rows: int, columns: int) -> None:
    weight = (
        torch.arange(1.0, rows * columns + 1).view(rows, columns) * torch.tensor([1.0, -1.0]).repeat(columns)[:columns]
    )
    count = round(0.3 * weight.numel())
    kept = snippet.smallest_removed(0.3)("", weight)
    assert (kept.flatten()[:count] == 0).all() and torch.equal(kept.flatten()[count:], weight.flatten()[count:])
    without = snippet.columns_removed({"a": torch.tensor([1])})("a", weight)
    assert (without[:, 1] == 0).all() and int((without == 0).sum()) == rows
    alone = snippet.one_removed(1, 2)("", weight)
    assert alone[1, 2] == 0 and int((alone == 0).sum()) == 1 and weight[1, 2] != 0


def test_noise_has_the_share_that_it_says_and_repeats() -> None:
    weight = 3 * torch.randn(200, 201, generator=torch.Generator().manual_seed(1))
    noise = snippet.noisy(0.1, 5)("", weight) - weight
    assert float(noise.norm() / weight.norm()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(snippet.noisy(0.1, 5)("", weight) - weight, noise)
    assert abs(float((noise * weight).sum() / noise.norm() / weight.norm())) < 0.02


def test_random_removal_takes_about_its_share() -> None:
    kept = snippet.random_removed(0.3, 0)("", torch.ones(101, 103))
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.02)


def test_weights_come_back_even_after_an_error() -> None:
    decoder = trained.decoder("tiny")
    before = {name: weight.clone() for name, weight in matrices(decoder, ()).items()}
    with pytest.raises(RuntimeError), snippet.changed(decoder, snippet.noisy(1.0, 0)):
        assert not torch.equal(before["layers.0.mlp.up_proj"], matrices(decoder)["layers.0.mlp.up_proj"])
        assert torch.equal(before["embed_tokens"], matrices(decoder, ())["embed_tokens"])
        raise RuntimeError
    assert all(torch.equal(before[name], weight) for name, weight in matrices(decoder, ()).items())


def test_no_change_is_no_rise() -> None:
    decoder, windows = trained.decoder("tiny"), trained.held_out_windows(2, 64)
    base = snippet.window_nats(decoder, windows)
    assert snippet.rise(decoder, windows, lambda _, weight: weight, base).tolist() == [0.0, 0.0]


def test_loud_columns_are_those_of_the_largest_inputs() -> None:
    """A second way: scale a norm's weight, and its channel becomes the loudest input of what reads it."""
    decoder = trained.decoder("tiny")
    decoder.get_parameter("layers.0.input_layernorm.weight").data[17] = 1000.0
    loud = snippet.loud_columns(decoder, trained.held_out_windows(1, 32), 0.01)
    assert loud["layers.0.self_attn.q_proj"].tolist() == [17]
    others = snippet.random_columns(loud, decoder, 0)
    assert {name: len(chosen) for name, chosen in others.items()} == {name: len(c) for name, c in loud.items()}


def test_the_loudest_weight_makes_the_largest_output() -> None:
    decoder = trained.decoder("tiny")
    decoder.get_parameter("layers.1.mlp.down_proj.weight").data[5, 9] = 1e6
    name, row, column = snippet.loudest_weight(decoder, trained.held_out_windows(1, 32))
    assert (name, row, column) == ("layers.1.mlp.down_proj", 5, 9)


def test_trap_one_weight_is_no_error_on_average() -> None:
    decoder = smollm2.decoder()
    name, row, column = snippet.loudest_weight(decoder, calibration_windows(1, 64))
    weight = decoder.get_parameter(f"{name}.weight")
    changed = snippet.one_removed(row, column)("", weight)
    share = sum(w.square().sum(dtype=torch.float64) for w in matrices(decoder).values())
    assert float((changed - weight).double().square().sum() / share) < 1e-4
    values = measured_small("quantization/redundancy_and_robustness")
    assert values["one_weight_nats"] > 0.5 > 100 * abs(values["another_weight_nats"])


def test_the_larger_and_the_less_trained_bear_more() -> None:
    values = measured_small("quantization/redundancy_and_robustness")
    assert values["few_noise50_nats"] < values["small_noise50_nats"] < values["tiny_noise50_nats"]
    assert values["small_smallest30_nats"] < 0.2 * values["small_random30_nats"]


def test_on_the_control_every_choice_is_its_baseline() -> None:
    values = controlled("quantization/redundancy_and_robustness")
    for name in ("random_excess_nats", "loud_excess_nats", "size_gain_nats", "training_rise_nats"):
        assert values[name] == 0, name
    assert values["one_weight_nats"] == values["another_weight_nats"]


def test_rounding_is_noise_of_about_its_step() -> None:
    """A step is the largest weight over the largest code; its error is uniform, so a root of twelve below it."""
    shares = [snippet.rounding_share(Scheme(bits, group=64)) for bits in (4, 5)]
    assert 0.08 < shares[0] < 0.12
    assert shares[0] / shares[1] == pytest.approx(15 / 7, rel=0.05)

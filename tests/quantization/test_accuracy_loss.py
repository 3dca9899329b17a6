"""Why does quantization hardly hurt accuracy? Noise agrees with a second way, claims fail, the trap is shown wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from snippets.models import language_loss, smollm2
from snippets.models.decoder import Decoder, initialize
from snippets.models.rounding import Scheme, matrices, quantize_decoder
from snippets.models.shapes import Geometry
from snippets.quantization import accuracy_loss as snippet
from tests.small import measured_small

TINY = Geometry("tiny", 2, 64, 4, 2, 16, 128, 53, True, "none")


@pytest.fixture(scope="module")
def values() -> Mapping[str, float]:
    return measured_small("quantization/accuracy_loss")


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (5, 7), (7, 64)])
def test_snr_is_minus_the_relative_error_in_decibels(rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    stored = snippet.at_width(weight, 4, group=None)
    relative = float((stored - weight).norm() / weight.norm())
    assert snippet.snr_db(weight, stored) == pytest.approx(-20 * math.log10(relative), abs=1e-4)


def test_bf16_is_torchs_own() -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(snippet.at_width(weight, 16), weight.to(torch.bfloat16).to(torch.float32))
    assert not torch.equal(snippet.at_width(weight, 16), weight)


def test_measured_drops_follow_the_steps_until_there_is_one() -> None:
    columns = snippet.noise_columns(snippet.gaussian_rows(16))
    assert columns["steps_count"] == [127, 63, 31, 15, 7, 3, 1]
    for got, said in zip(columns["drop_db"][1:-1], columns["predicted_drop_db"][1:-1], strict=True):
        assert got == pytest.approx(said, abs=0.15)
    assert columns["drop_db"][-1] < columns["predicted_drop_db"][-1] - 1  # INT2 cannot lose what is not there


def tiny() -> Decoder:
    decoder = Decoder(TINY).requires_grad_(False)
    initialize(decoder, seed=0, std=0.3)
    return decoder


def test_only_matrices_of_layers_are_rounded_and_all_are_put_back() -> None:
    decoder = tiny()
    own = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    seen: list[set[str]] = []

    def changed(model: torch.nn.Module) -> torch.Tensor:
        seen.append({name for name, parameter in model.named_parameters() if not torch.equal(parameter, own[name])})
        return torch.zeros(1)

    assert set(snippet.by_width(decoder, changed, (8, 2, 8))) == {32, 8, 2}
    layers = {f"{name}.weight" for name in matrices(decoder)}
    assert layers and not any("embed" in name or "norm" in name for name in layers)
    assert seen == [set(), layers, layers]
    assert all(torch.equal(parameter, own[name]) for name, parameter in decoder.named_parameters())


def test_losses_are_of_the_rounded_model_and_paired() -> None:
    windows = torch.randint(0, 53, (3, 7), generator=torch.Generator().manual_seed(3))
    found = snippet.losses(tiny(), windows, (8, 2))
    by_hand = quantize_decoder(tiny(), Scheme(2, group=snippet.GROUP))
    assert torch.equal(found[2], language_loss.window_nats(by_hand, windows))
    assert (found[2] - found[32]).abs().mean() > 10 * (found[8] - found[32]).abs().mean() > 0


def test_scale_and_minimum_gives_its_own_grid_back_and_no_other() -> None:
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(4))
    once = snippet.scale_and_minimum(weight)
    assert snippet.changed_count([weight]) > 0.9 * weight.numel()
    assert snippet.changed_count([once]) == 0
    assert snippet.changed_count([once], shift=16) > 0.5 * weight.numel()
    # A second way: each group holds at most as many values as there are codes, its least and its greatest kept to FP16.
    parts = once.unflatten(1, (-1, 32))
    assert all(group.unique().numel() <= 16 for row in parts for group in row)
    assert torch.equal(parts.amin(-1), weight.unflatten(1, (-1, 32)).amin(-1).half().float())


def test_a_constant_group_survives() -> None:
    weight = torch.full((2, 32), 0.25)
    assert torch.equal(snippet.scale_and_minimum(weight), weight)


@pytest.mark.models
def test_trap_the_packaged_weights_are_free_on_their_own_grid_alone() -> None:
    layer = {n: w for n, w in matrices(smollm2.decoder()).items() if n.startswith("layers.3.")}
    assert len(layer) == 7
    weights = list(layer.values())
    assert snippet.changed_count(weights) == 0
    assert snippet.changed_count(weights, shift=16) > 0.5 * sum(weight.numel() for weight in weights)
    shifted = torch.cat([snippet.scale_and_minimum(w, shift=16).flatten() for w in weights])
    whole = torch.cat([w.flatten() for w in weights])
    assert 10 < snippet.snr_db(whole[None], shifted[None]) < 30

"""Why are activations harder? Ratios by hand on odd sizes, remedies that leave the product alone, traps shown wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from snippets.models.calibrated import SHARED_INPUTS, Int8Linear, int8_copy
from snippets.models.decoder import Decoder, from_state, initialize
from snippets.models.rounding import Scheme, round_to_grid
from snippets.models.shapes import Geometry
from snippets.quantization import outliers
from tests.small import measured_small

TINY = Geometry("tiny", 3, 30, 3, 1, 10, 45, 53, True, "none")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return from_state(TINY, initialize(Decoder(TINY), 3, std=0.2).state_dict(), torch.float32)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(53, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(2, 3), (5, 7), (7, 5)])
def test_decibels_by_hand(shape: tuple[int, int]) -> None:
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    rounded = round_to_grid(whole, Scheme(8))
    signal = sum(float(v) ** 2 for v in whole.flatten())
    noise = sum((float(a) - float(b)) ** 2 for a, b in zip(whole.flatten(), rounded.flatten(), strict=True))
    assert outliers.decibels(whole, rounded) == pytest.approx(10 * math.log10(signal / noise), rel=1e-5)


def test_plain_draws_have_the_noise_of_a_uniform_step() -> None:
    """Error of a step is its square over twelve: the theory gives the decibels that are measured."""
    rows, _ = outliers.few_large(tokens=64, large=0)
    step = float(rows.abs().max()) / 127
    theory = 10 * math.log10(float(rows.square().mean()) / (step**2 / 12))
    assert outliers.decibels(rows, round_to_grid(rows, Scheme(8, per="tensor"))) == pytest.approx(theory, abs=0.2)


def test_chosen_channels_are_large_and_no_others() -> None:
    rows, ordinary = outliers.few_large(tokens=32, channels=35, large=5, factor=100.0)
    assert int((~ordinary).sum()) == 5
    assert rows[:, ~ordinary].std() > 50 * rows[:, ordinary].std()


def test_trap_the_whole_hides_the_ordinary_channels() -> None:
    found = outliers.synthetic_values()
    for per in ("tensor", "token"):
        assert found[f"few_{per}_whole_db"] > found[f"few_{per}_ordinary_db"] + 8
        assert abs(found[f"plain_{per}_whole_db"] - found[f"plain_{per}_ordinary_db"]) < 0.1


def test_peak_is_the_largest_column_over_the_median_one() -> None:
    table = torch.tensor([[1.0, -3.0, 2.0], [0.5, 1.0, -12.0], [0.0, 2.0, 1.0]])
    assert outliers.peak_ratio(table) == 4.0


def test_smoothing_changes_no_product(decoder: Decoder, ids: torch.Tensor) -> None:
    """Divided inputs times multiplied weights, unrounded, give the same logits; every chosen layer has a divisor."""
    known = outliers.layer_inputs(decoder, ids, range(3))
    divisors = outliers.divisors(decoder, known, outliers.ALSO_DOWN, 0.5)
    assert len(divisors) == 3 * (3 + 2 + 1)

    class Divided(nn.Module):
        def __init__(self, linear: nn.Linear, divisor: torch.Tensor) -> None:
            super().__init__()
            self.weight, self.divisor = linear.weight * divisor, divisor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x / self.divisor) @ self.weight.T

    def make(name: str, linear: nn.Linear) -> nn.Module:
        return Divided(linear, divisors[name]) if name in divisors else linear

    torch.testing.assert_close(int8_copy(decoder, make)(ids), decoder(ids), rtol=1e-4, atol=1e-4)


def test_layers_with_common_inputs_have_one_divisor(decoder: Decoder, ids: torch.Tensor) -> None:
    known = outliers.layer_inputs(decoder, ids, [1])
    found = outliers.divisors(decoder, known, outliers.FOLDED, 0.5)
    names = [f"layers.1.{name}" for group in SHARED_INPUTS if group[0] in outliers.FOLDED for name in group]
    assert sorted(found) == sorted(names)
    assert found["layers.1.self_attn.q_proj"] is found["layers.1.self_attn.v_proj"]


def test_forms_are_what_their_names_say(decoder: Decoder, ids: torch.Tensor) -> None:
    known = outliers.layer_inputs(decoder, ids, range(3))
    for form, (per, smoothed, threshold) in outliers.FORMS.items():
        assert (per == "row") is form.startswith("token")
        assert (threshold is not None) is form.endswith("apart")
        changed = outliers.int8_model(decoder, known, form)
        for name in ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"):
            layer = changed.get_submodule(f"layers.0.{name}")
            assert isinstance(layer, Int8Linear) and layer.scheme.per == per and layer.threshold == threshold
            chosen = name.replace("k_proj", "q_proj") in smoothed
            assert (layer.divisor is not None) is chosen


@pytest.fixture(scope="module")
def found() -> Mapping[str, float]:
    return measured_small("quantization/outliers")


@pytest.mark.models
def test_the_first_token_is_what_makes_the_largest_peak(found: Mapping[str, float]) -> None:
    assert found["later_tokens_peak_ratio"] < found["inputs_peak_ratio"]
    assert found["weights_peak_ratio"] < found["inputs_peak_ratio"]

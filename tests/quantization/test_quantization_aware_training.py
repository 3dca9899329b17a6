"""When is quantization-aware training worth it? Gradients by hand, errors by hand, and the unfair comparison shown."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from snippets.models import trained
from snippets.models.rounding import Scheme, matrices, round_to_grid
from snippets.models.shapes import LLAMA_3_8B
from snippets.quantization import quantization_aware_training as snippet
from tests.small import controlled, measured_small

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def values() -> Mapping[str, float]:
    return measured_small("quantization/quantization_aware_training")


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (5, 7)])
def test_the_page_s_estimator_is_the_one_that_trained(rows: int, columns: int) -> None:
    scheme = Scheme(3)
    inputs = torch.randn(4, columns, generator=torch.Generator().manual_seed(1))
    gradients = []
    for rounded in (lambda w: snippet.straight_through(w, scheme), trained.StraightThrough(scheme)):
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), requires_grad=True)
        (inputs @ rounded(weight).T).square().sum().backward()
        assert weight.grad is not None
        gradients.append(weight.grad)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    by_hand = 2 * (inputs @ round_to_grid(weight, scheme).T).T @ inputs
    assert torch.equal(*gradients) and torch.allclose(gradients[0], by_hand, rtol=1e-4, atol=1e-4)


def test_rounding_alone_has_no_gradient() -> None:
    weight = torch.randn(3, 5, requires_grad=True)
    round_to_grid(weight.detach() * 1.0, Scheme(4)).requires_grad_().sum().backward()
    assert weight.grad is None
    codes = weight.div(0.1).round()
    codes.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_mean_and_error_over_seeds_and_over_windows_of_one() -> None:
    mean, error = snippet.mean_and_error([torch.tensor([1.0, 3.0]), torch.tensor([4.0, 4.0]), torch.tensor([6.0, 6.0])])
    assert mean == 4.0 and error == pytest.approx(2 / math.sqrt(3))
    assert snippet.mean_and_error([torch.tensor([1.0, 3.0])]) == (2.0, pytest.approx(1.0))


def test_the_trained_weights_lie_on_no_grid_and_their_rounding_does() -> None:
    for weight in matrices(trained.continued(0, trained.FURTHER_SCHEMES[2])).values():
        codes = round_to_grid(weight, trained.FURTHER_SCHEMES[2]).view(len(weight), -1, 64)
        assert all(group.unique().numel() <= 3 for group in codes[0])
        assert weight[0].unique().numel() > 60


def test_where_rounding_costs_little_there_is_little_to_win(values: Mapping[str, float]) -> None:
    costs = [values[f"int{bits}_nearest_nats"] for bits in (8, 4, 3, 2)]
    assert costs == sorted(costs) and costs[3] > 10 * costs[1] > 10 * abs(costs[0])
    assert values["int2_qat_nats"] < values["int2_gptq_nats"] < values["int2_nearest_nats"]
    assert values["int4_nearest_nats"] - values["int4_qat_nats"] < 0.1 * values["int2_gain_nats"]


def test_trap_against_the_model_before_training_even_rounding_seems_to_help(
    values: Mapping[str, float],
) -> None:
    assert values["int4_unfair_nats"] < 0 < values["int4_qat_nats"]
    assert values["int4_unfair_nats"] == pytest.approx(values["int4_qat_nats"] - values["further_gain_nats"])


def test_on_the_control_training_changes_nothing() -> None:
    values = controlled("quantization/quantization_aware_training")
    assert values["int2_gain_nats"] == values["int2_over_gptq_nats"] == values["further_gain_nats"] == 0
    assert values["int8_nearest_nats"] > 0.05


def test_costs_by_hand() -> None:
    values = snippet.cost_values()
    assert values["qat_tokens"] == values["further_steps_count"] * values["step_tokens"] == 102_400
    assert values["llama_adamw_bytes"] == 16 * values["llama_weights_count"]
    layers = LLAMA_3_8B.layers * (4096 * (4096 * 2 + 1024 * 2 + 3 * 14336) + 2 * 4096)
    assert values["llama_weights_count"] == layers + 2 * 128_256 * 4096 + 4096

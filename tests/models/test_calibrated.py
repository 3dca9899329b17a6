"""Each method against a second way: removal one by one with explicit inverses, brute force, the paper's identities."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from snippets.models import calibrated
from snippets.models.calibrated import INT8_ROWS, Inputs, Int8Linear
from snippets.models.decoder import Decoder, from_state, initialize
from snippets.models.rounding import Scheme, quantize_decoder, round_to_grid, scales
from snippets.models.shapes import Geometry

SCHEME = Scheme(3, group=5)
TINY = Geometry("tiny", 3, 30, 3, 1, 10, 45, 53, True, "none")
SQUARE = Geometry("square", 2, 30, 3, 3, 10, 45, 53, True, "none")


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, columns: int, seed: int = 1) -> Tensor:
    """Inputs whose columns go together, and of which one is large: what calibration can use."""
    rows = draw(tokens, 3, seed=seed) @ draw(3, columns, seed=seed + 1) + 0.3 * draw(tokens, columns, seed=seed + 2)
    rows[:, 2] *= 8
    return rows


def tiny_decoder(geometry: Geometry) -> Decoder:
    return from_state(geometry, initialize(Decoder(geometry), 3, std=0.2).state_dict(), torch.float32)


def weight_of(module: nn.Module, name: str) -> Tensor:
    return module.get_parameter(f"{name}.weight")


def surgery(weight: Tensor, moment: Tensor, scheme: Scheme) -> Tensor:
    """Optimal brain surgery, column after column in FP64: invert what is left, round, spread the error, drop it."""
    left, rounded = weight.double().clone(), torch.zeros_like(weight).double()
    for column in range(weight.shape[1]):
        if column % (scheme.group or weight.shape[1]) == 0:
            step = scales(left[:, column : column + (scheme.group or weight.shape[1])], Scheme(scheme.bits))
        inverse = torch.linalg.inv(moment.double()[column:, column:])
        codes = (left[:, column] / step[:, 0]).round().clamp(-scheme.largest, scheme.largest)
        rounded[:, column] = codes * step[:, 0]
        error = (left[:, column] - rounded[:, column]) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0]
    return rounded


@pytest.mark.parametrize(("rows", "columns", "group"), [(2, 5, 5), (3, 10, 5), (7, 15, 3), (5, 7, None)])
def test_gptq_equals_surgery_with_explicit_inverses(rows: int, columns: int, group: int | None) -> None:
    weight, inputs = draw(rows, columns, seed=columns), Inputs.of(correlated(50, columns))
    scheme = Scheme(3, group=group)
    found = calibrated.error_compensated(weight, inputs, scheme, damping=0.01)
    moment = inputs.second_moment + 0.01 * inputs.second_moment.diagonal().mean() * torch.eye(columns)
    torch.testing.assert_close(found.double(), surgery(weight, moment, scheme), rtol=0, atol=1e-5)
    assert not torch.equal(found, round_to_grid(weight, scheme))


def test_gptq_lies_between_nearest_and_the_best_of_all_codes() -> None:
    """One row of few columns: every combination of codes on the same grid is tried."""
    scheme, found = Scheme(3), []
    inputs = Inputs.of(draw(40, 2) @ draw(2, 4, seed=5) + draw(40, 4, seed=6))
    for seed in range(20):
        weight = draw(1, 4, seed=seed)
        step = scales(weight, scheme)
        codes = torch.tensor(list(itertools.product(range(-3, 4), repeat=4)))
        all_errors = (calibrated.output_error(weight, c[None] * step, inputs.second_moment) for c in codes)
        best = min(all_errors)
        ways = (calibrated.error_compensated(weight, inputs, scheme, 1e-6), round_to_grid(weight, scheme))
        compensated, nearest = (calibrated.output_error(weight, way, inputs.second_moment) for way in ways)
        assert best <= compensated + 1e-7
        found.append((best, compensated, nearest))
    best, compensated, nearest = torch.tensor(found).mean(0).tolist()
    assert best < compensated < nearest


def test_inputs_that_do_not_correlate_leave_nothing_to_compensate() -> None:
    weight, size = draw(4, 10), torch.ones(10)
    inputs = Inputs(torch.diag(torch.arange(1.0, 11.0)), size, size, 10)
    torch.testing.assert_close(calibrated.error_compensated(weight, inputs, SCHEME), round_to_grid(weight, SCHEME))


def test_a_column_that_is_never_used_breaks_nothing() -> None:
    rows = correlated(20, 10)
    rows[:, 4] = 0
    weight = draw(3, 10)
    weight[1] = 0
    found = calibrated.error_compensated(weight, Inputs.of(rows), SCHEME)
    assert found.isfinite().all() and (found[1] == 0).all()


@pytest.mark.parametrize("scheme", [Scheme(4, symmetric=False), Scheme(4, per="tensor")])
def test_gptq_refuses_grids_it_is_not_written_for(scheme: Scheme) -> None:
    with pytest.raises(ValueError, match="symmetric"):
        calibrated.error_compensated(draw(2, 4), None, scheme)


@pytest.mark.parametrize("method", calibrated.METHODS.values(), ids=calibrated.METHODS)
def test_without_samples_every_method_rounds_to_nearest(method: calibrated.Method) -> None:
    weight = draw(7, 15)
    assert torch.equal(method(weight, None, SCHEME), round_to_grid(weight, SCHEME))


def test_awq_protects_the_large_column_and_never_does_worse_than_nearest() -> None:
    weight, inputs = draw(20, 30), Inputs.of(correlated(60, 30))
    found, nearest = calibrated.activation_aware(weight, inputs, SCHEME), round_to_grid(weight, SCHEME)
    column = [(way - weight)[:, 2].norm() for way in (found, nearest)]
    assert column[0] < 0.7 * column[1]
    errors = [calibrated.output_error(weight, way, inputs.second_moment) for way in (found, nearest)]
    assert errors[0] < 0.9 * errors[1]


def test_output_error_is_that_of_the_outputs() -> None:
    weight, changed, rows = draw(5, 7), draw(5, 7, seed=9), correlated(30, 7)
    outputs, others = rows @ weight.T, rows @ changed.T
    by_hand = ((outputs - others).double().norm() / outputs.double().norm()) ** 2
    assert calibrated.output_error(weight, changed, Inputs.of(rows).second_moment) == pytest.approx(
        float(by_hand), rel=1e-5
    )


def test_inputs_are_captured_and_hooks_removed() -> None:
    decoder, ids = tiny_decoder(TINY), torch.arange(14).view(2, 7)
    with calibrated.captured(decoder, ["layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"]) as seen:
        decoder(ids)
        decoder(ids[:1])
    norm = decoder.get_submodule("layers.0.input_layernorm")
    first = norm(decoder.embed_tokens(ids)).flatten(0, 1)
    torch.testing.assert_close(seen["layers.0.self_attn.q_proj"][:14], first)
    assert seen["layers.1.mlp.down_proj"].shape == (21, 45)
    assert not any(module._forward_pre_hooks for module in decoder.modules())


def test_calibrate_without_samples_is_the_plain_quantizer_and_changes_nothing_else() -> None:
    decoder = tiny_decoder(TINY)
    before = copy.deepcopy(decoder.state_dict())
    found = calibrated.calibrate(decoder, None, calibrated.error_compensated, SCHEME).state_dict()
    expected = quantize_decoder(decoder, SCHEME).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(decoder.state_dict()[name], before[name]) for name in before)
    half = calibrated.calibrate(decoder, None, calibrated.round_nearest, SCHEME, every=2).state_dict()
    assert torch.equal(half["layers.1.mlp.up_proj.weight"], before["layers.1.mlp.up_proj.weight"])
    assert torch.equal(half["layers.2.mlp.up_proj.weight"], expected["layers.2.mlp.up_proj.weight"])


def test_calibrate_gives_each_layer_the_inputs_that_the_quantized_model_gives_it() -> None:
    """The last block by hand: its inputs come from a model whose earlier blocks are quantized already."""
    decoder, windows = tiny_decoder(TINY), torch.randint(53, (6, 9), generator=torch.Generator().manual_seed(0))
    found = calibrated.calibrate(decoder, windows, calibrated.error_compensated, SCHEME)
    half_done = copy.deepcopy(found)
    half_done.get_submodule("layers.2").load_state_dict(decoder.get_submodule("layers.2").state_dict())
    names = ["layers.2.self_attn.k_proj", "layers.2.self_attn.o_proj", "layers.2.mlp.up_proj", "layers.2.mlp.down_proj"]
    with calibrated.captured(half_done, names) as seen:
        half_done(windows)
    for name in names:
        weight = weight_of(decoder, name)
        by_hand = calibrated.error_compensated(weight, Inputs.of(seen[name]), SCHEME)
        torch.testing.assert_close(weight_of(found, name), by_hand, rtol=0, atol=1e-5)


def test_awq_needs_no_layer_that_is_not_there() -> None:
    """Its column scales folded into norms and the layers before give the same logits as divided out of the weight."""
    decoder, windows = tiny_decoder(SQUARE), torch.randint(53, (4, 8), generator=torch.Generator().manual_seed(1))
    folded, scheme = copy.deepcopy(decoder), Scheme(4, group=5)
    scale, attention = torch.linspace(0.5, 3, 30), "layers.0.self_attn"
    weight_of(folded, "layers.0.input_layernorm").div_(scale)
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = weight_of(folded, f"{attention}.{name}")
        weight.copy_(round_to_grid(weight * scale, scheme))
    values, output = (weight_of(folded, f"{attention}.{name}") for name in ("v_proj", "o_proj"))
    values.div_(scale[:, None])  # rows of a rounded matrix keep their codes: only their scales change
    output.copy_(round_to_grid(output * scale, scheme))
    simulated = copy.deepcopy(decoder)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        weight = weight_of(simulated, f"{attention}.{name}")
        weight.copy_(round_to_grid(weight * scale, scheme) / scale)
    torch.testing.assert_close(folded(windows), simulated(windows), rtol=1e-4, atol=1e-4)


def test_awq_leaves_values_alone_that_query_heads_share() -> None:
    windows = torch.randint(53, (4, 8), generator=torch.Generator().manual_seed(1))
    for geometry, nearest in ((TINY, True), (SQUARE, False)):
        decoder = tiny_decoder(geometry)
        found = calibrated.calibrate(decoder, windows, calibrated.activation_aware, SCHEME)
        before, after = (weight_of(model, "layers.0.self_attn.o_proj") for model in (decoder, found))
        assert torch.equal(after, round_to_grid(before, SCHEME)) is nearest


def test_smoothing_leaves_the_product_as_it_was_and_balances_the_columns() -> None:
    weight, rows = draw(5, 7).double(), correlated(30, 7).double()
    divisor = calibrated.smoothing(weight, rows.abs().amax(0))
    smooth_rows, smooth_weight = rows / divisor, weight * divisor
    torch.testing.assert_close(smooth_rows @ smooth_weight.T, rows @ weight.T, rtol=1e-12, atol=1e-12)
    # At strength one half the paper's largest input and largest weight of a column come out equal.
    torch.testing.assert_close(smooth_rows.abs().amax(0), smooth_weight.abs().amax(0))
    powers = calibrated.smoothing(weight, torch.full((7,), 4.0), 1.0)
    torch.testing.assert_close(powers, torch.full((7,), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("per", ["row", "tensor"])
def test_int8_linear_equals_a_product_of_integers(per: str) -> None:
    linear, x = nn.Linear(7, 5), correlated(6, 7).view(2, 3, 7)
    rows = x.view(6, 7)
    step = rows.abs().amax(1, keepdim=True) / 127 if per == "row" else rows.abs().amax() / 127
    codes = (rows / step).round().to(torch.int8)
    weight_step = linear.weight.detach().abs().amax(1) / 127
    weight_codes = (linear.weight.detach() / weight_step[:, None]).round().to(torch.int8)
    by_hand = (codes.int() @ weight_codes.int().T) * step * weight_step + linear.bias.detach()
    found = Int8Linear(linear, per)(x).detach()
    torch.testing.assert_close(found, by_hand.view(2, 3, 5), rtol=1e-4, atol=1e-4)


def test_columns_apart_and_columns_rounded_make_the_whole_product() -> None:
    linear, rows = nn.Linear(7, 5, bias=False), correlated(6, 7)
    apart = calibrated.outlier_columns(rows, 6.0)
    assert apart.tolist() == [bool(column.abs().max() >= 6) for column in rows.T] and 0 < apart.sum() < 7
    layer = Int8Linear(linear, threshold=6.0)
    layer.weight, layer.scheme = nn.Parameter(linear.weight), Scheme(16)
    torch.testing.assert_close(layer(rows), linear(rows), rtol=1e-3, atol=1e-3)
    everything = Int8Linear(linear, threshold=0.0)
    torch.testing.assert_close(everything(rows), linear(rows))
    rounded = Int8Linear(linear, threshold=6.0)(rows)
    low = round_to_grid(rows * ~apart, INT8_ROWS) @ round_to_grid(linear.weight, INT8_ROWS).T
    torch.testing.assert_close(rounded, low + rows[:, apart] @ linear.weight[:, apart].T)


def test_remedies_lessen_the_error_of_a_large_column() -> None:
    linear, rows = nn.Linear(64, 32, bias=False).requires_grad_(False), draw(40, 64)
    rows[:, 3] *= 100
    divisor = calibrated.smoothing(linear.weight.detach(), rows.abs().amax(0))
    layers = {
        "none": Int8Linear(linear, "tensor"),
        "smooth": Int8Linear(linear, "tensor", divisor=divisor),
        "apart": Int8Linear(linear, "tensor", threshold=6.0),
    }
    errors = {name: float((layer(rows) - linear(rows)).norm()) for name, layer in layers.items()}
    assert errors["smooth"] < errors["none"] / 3 and errors["apart"] < errors["smooth"]


def test_int8_copy_replaces_every_linear_layer_but_the_head() -> None:
    decoder, ids = tiny_decoder(TINY), torch.arange(7)[None]
    changed = calibrated.int8_copy(decoder, lambda _, linear: Int8Linear(linear))
    assert sum(isinstance(m, Int8Linear) for m in changed.modules()) == 3 * 7
    assert isinstance(changed.lm_head, nn.Linear)
    assert not any(isinstance(m, Int8Linear) for m in decoder.modules())
    difference = (changed(ids) - decoder(ids)).norm() / decoder(ids).norm()
    assert 1e-5 < difference < 0.05

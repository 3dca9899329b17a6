"""Per tensor, channel or group? SNR agrees with a second way, claims can fail, each trap is shown wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.models import similarity, smollm2
from snippets.models.encoder import encoder
from snippets.models.quantized import quantize_groups_int4
from snippets.models.rounding import Scheme, round_to_grid
from snippets.quantization import scale_granularity as snippet
from tests.small import measured_small


@pytest.fixture(scope="module")
def values() -> Mapping[str, float]:
    return measured_small("quantization/scale_granularity")


@pytest.mark.parametrize(("rows", "columns", "group"), [(2, 6, 3), (3, 10, 5), (5, 14, 7)])
@pytest.mark.parametrize("level", snippet.LEVELS)
def test_snr_agrees_with_a_loop_over_what_shares_a_scale(rows: int, columns: int, group: int, level: str) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    width = {"tensor": rows * columns, "row": columns, "group": group}[level]
    noise = 0.0
    for part in weight.reshape(-1, width).double():
        step = float(part.abs().max()) / 7
        noise += sum((float(v) - step * round(float(v) / step)) ** 2 for v in part)
    wanted = 10 * math.log10(float(weight.double().square().sum()) / noise)
    assert snippet.snr_db([weight], snippet.scheme(level, group)) == pytest.approx(wanted, abs=1e-3)


def test_the_simulated_grid_is_the_packed_one() -> None:
    weight = snippet.gaussian(7, 256)
    packed = quantize_groups_int4(weight, 128, scale_dtype=torch.float32).dequantize()
    assert torch.allclose(packed, round_to_grid(weight, snippet.scheme("group")), rtol=1e-6, atol=1e-6)


def test_gaussian_gains_follow_the_reach_and_zero_uses_the_spare_code() -> None:
    found = snippet.level_values({name: [snippet.gaussian(128)] for name in snippet.SOURCES})
    for coarse, fine in (("tensor", "row"), ("row", "group")):
        gain = found[f"gaussian_{fine}_db"] - found[f"gaussian_{coarse}_db"]
        said = 20 * math.log10(found[f"reach_{coarse}_ratio"] / found[f"reach_{fine}_ratio"])
        assert gain == pytest.approx(said, abs=0.2)
    spare = 20 * math.log10(15 / 14)
    assert spare < found["gaussian_group_zero_db"] - found["gaussian_group_db"] < spare + 1.5


def test_student_has_the_variance_and_the_tails_of_four_degrees() -> None:
    draws = snippet.student(512)
    assert float(draws.double().var()) == pytest.approx(4 / (4 - 2), rel=0.05)
    # P(|t| > 4.604) is a hundredth for four degrees of freedom.
    assert float((draws.abs() > 4.604).double().mean()) == pytest.approx(0.01, rel=0.03)
    normal = snippet.gaussian(512)
    assert float((normal.abs() > 4.604).double().mean()) < 1e-4


def test_a_zero_point_is_a_bit_where_values_are_one_sided_and_exact_at_zero() -> None:
    one_sided = snippet.gaussian(64, 512).relu()
    gain = snippet.snr_db([one_sided], Scheme(8, symmetric=False)) - snippet.snr_db([one_sided], Scheme(8))
    assert gain == pytest.approx(20 * math.log10(255 / 127), abs=0.1)
    assert bool((round_to_grid(one_sided, Scheme(8, symmetric=False))[one_sided == 0] == 0).all())


def test_bits_by_hand() -> None:
    found = snippet.bits_values(2, 256)
    assert found["matrix_tensor_bits"] == 2 * 256 * 4 + 16
    assert found["matrix_row_bits"] == 2 * (256 * 4 + 16)
    assert found["matrix_group_bits"] == 4 * (128 * 4 + 16)
    assert found["matrix_zero_bits"] == 4 * (128 * 4 + 16 + 4)


@pytest.mark.models
def test_captured_activations_are_what_the_second_products_read() -> None:
    model, sentence = encoder(), "A cat sleeps on the sofa."
    caught = snippet.after_gelu(model, [sentence])
    assert len(caught) == 6 and all(tokens.shape == caught[0].shape for tokens in caught)
    assert min(float(tokens.min()) for tokens in caught) > -0.17 < 0.5 < max(float(tokens.max()) for tokens in caught)
    read: list[Tensor] = []
    hook = model.encoder.layer[2].output.dense.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0]))  # type: ignore[union-attr,index]
    similarity.sentence_vectors(model, [sentence])
    hook.remove()
    assert torch.equal(caught[2], read[0])


@pytest.mark.models
def test_swiglu_is_two_sided() -> None:
    decoder = smollm2.decoder()
    ids = smollm2.encode("The capital of France is Paris.")
    caught = snippet.after_swiglu(decoder, ids)
    assert [tuple(tokens.shape) for tokens in caught] == [(ids.shape[1], 1536)] * 30
    x = torch.randn(1, 3, 576, generator=torch.Generator().manual_seed(1))
    mlp = decoder.layers[0].mlp
    inner = F.silu(mlp.gate_proj(x)) * mlp.up_proj(x)  # type: ignore[operator,union-attr]
    assert torch.allclose(mlp(x), inner @ mlp.down_proj.weight.T, atol=1e-5)  # type: ignore[operator,union-attr]
    gelu = snippet.after_gelu(encoder(), ["The capital of France is Paris."])
    # How far the smallest value of a token reaches against its largest: a symmetric grid covers both alike.
    below = [float(torch.cat([-t.amin(1) / t.amax(1) for t in layers]).median()) for layers in (gelu, caught)]
    assert below[0] < 0.2 and 0.5 < below[1] < 2


def test_the_median_token_is_not_drowned_by_a_loud_one() -> None:
    tokens = snippet.gaussian(7, 64)
    tokens[0] *= 1000
    tokens[1:] = tokens[1:].abs() ** 4  # heavy tails: worse than the loud row
    plain = [float(snippet.snr_db([row[None]], Scheme(8))) for row in tokens]
    assert snippet.token_snr_db([tokens], Scheme(8)) == pytest.approx(sorted(plain)[3])
    assert snippet.snr_db([tokens], Scheme(8)) == pytest.approx(plain[0], abs=0.1)


def test_trap_the_tensors_snr_hides_rows_that_are_gone() -> None:
    weight = snippet.loud_rows(rows=64, loud=2)
    found = snippet.trap_values(weight, loud=2)
    assert found["loud_tensor_db"] > 10
    assert found["quiet_zeroed_count"] == found["quiet_rows_count"] == 62
    assert snippet.trap_values(weight, loud=2, level="row")["quiet_zeroed_count"] == 0
    quiet = [weight[2:]]
    assert snippet.snr_db(quiet, snippet.scheme("row")) > 15

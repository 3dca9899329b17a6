"""How does quantization affect memory? Counts agree on odd sizes, claims can fail, each trap is shown wrong."""

from __future__ import annotations

import dataclasses
from math import prod

import pytest
import torch

from measured import claims
from measured.page import Claim, read_page
from snippets.instruments import memory
from snippets.models import minilm, quantized, shapes, smollm2
from snippets.models.quantized import QuantizedWeight, quantize_groups_int4
from snippets.quantization import weight_bytes as snippet

PAGE = "quantization/weight_bytes"
CLAIMS = [pytest.param(claim, id=claim.id) for claim in read_page(PAGE).claims]
# D claims that count what no quantizer touches: the same with and without one.
UNTOUCHED = {
    "wb-apart",
    "wb-llama-bf16",
    "wb-indivisible",
    "wb-chosen",
    "wb-narrow-g64",
    "wb-narrow-padded",
    "wb-again",
}


@pytest.fixture(scope="module")
def values() -> dict[str, float]:
    return snippet.measure(device="cpu")


@pytest.fixture(scope="module")
def baseline() -> dict[str, float]:
    return snippet.control(device="cpu")


@pytest.mark.models
@pytest.mark.parametrize("claim", CLAIMS)
def test_claim_holds(claim: Claim, values: dict[str, float]) -> None:
    assert claims.holds(claim, values), claim.check


@pytest.mark.models
@pytest.mark.parametrize("claim", [case for case in CLAIMS if case.id not in UNTOUCHED])
def test_claim_fails_without_quantization(claim: Claim, baseline: dict[str, float]) -> None:
    assert not claims.holds(claim, baseline), claim.check


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7])
@pytest.mark.parametrize(
    ("columns", "stored_as"),
    [(c, how) for c in (2, 3, 5, 7) for how in (torch.bfloat16, torch.float32, snippet.INT8)]
    + [(c, snippet.int4(g)) for c, g in ((2, 2), (6, 3), (10, 5), (14, 7), (30, 5))],
    ids=str,
)
def test_formula_storage_and_file_agree_on_odd_sizes(
    rows: int, columns: int, stored_as: snippet.Format | torch.dtype
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    kept = {"w": snippet.stored(weight, stored_as)}
    wanted = snippet.formula_bytes(weight.shape, stored_as)
    assert wanted == kept["w"].nbytes == snippet.file_bytes(kept) == memory.storage_bytes(kept["w"]) > 0


def test_formula_by_hand() -> None:
    assert snippet.formula_bytes((3, 256), snippet.int4(128)) == 3 * (128 + 2 * 2)
    assert snippet.formula_bytes((3, 256), snippet.INT8) == 3 * (256 + 4)
    assert snippet.formula_bytes((3, 256), torch.bfloat16) == 3 * 256 * 2
    assert snippet.formula_bytes((7,), torch.bfloat16) == 14


def test_llama_totals_follow_from_parameter_counts() -> None:
    state = snippet.shapes_only(shapes.LLAMA_3_8B)
    parts = shapes.parameters(shapes.LLAMA_3_8B)
    found = snippet.model_bytes("llama", state, snippet.formats("llama"))
    vocabulary = parts.embedding + parts.head
    assert found["llama_weights_count"] == parts.total
    assert found["llama_linear_weights_count"] == parts.linear
    assert 8 * found["llama_int4_linear_bytes"] == 4.125 * parts.linear
    assert 8 * found["llama_int4_kept_bytes"] == 4.125 * parts.linear + 16 * (vocabulary + parts.norms)
    assert 8 * found["llama_int4_all_bytes"] == 4.125 * (parts.linear + vocabulary) + 16 * parts.norms


@pytest.mark.parametrize("geometry", [shapes.SMOLLM2_135M, shapes.LLAMA_3_70B], ids=lambda g: g.name)
def test_shapes_only_has_every_parameter_and_no_memory(geometry: shapes.Geometry) -> None:
    state = snippet.shapes_only(geometry)
    assert sum(prod(w.shape) for w in state.values()) == shapes.parameters(geometry).total
    assert all(w.is_meta for w in state.values())
    assert ("lm_head" in state) == (not geometry.tied)


@pytest.mark.models
def test_linear_layers_are_the_blocks_matrices() -> None:
    assert set(snippet.linear_layers(minilm.load_state())) == set(minilm.linear_weights())
    decoder = smollm2.load_state()
    found = snippet.linear_layers(decoder)
    assert sum(decoder[name].numel() for name in found) == shapes.parameters(shapes.SMOLLM2_135M).linear
    assert {name: tuple(w.shape) for name, w in decoder.items() if name not in found and w.ndim == 2} == {
        "model.embed_tokens.weight": (49_152, 576)
    }


def _minilm_claims() -> list[Claim]:
    return [claim for claim in read_page(PAGE).claims if claim.id in ("wb-minilm-ways", "wb-apart")]


def _minilm_values() -> dict[str, int]:
    found = snippet.model_bytes("minilm", minilm.load_state(), snippet.formats("minilm"))
    return found | {"smollm2_apart_bytes": 0, "llama_apart_bytes": 0}


@pytest.mark.models
@pytest.mark.parametrize("sabotage", ["storage", "formula", "file", "unpacked"])
def test_a_count_that_drops_the_scales_or_the_packing_breaks_claims(
    sabotage: str, values: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(claims.holds(claim, values) for claim in _minilm_claims())
    if sabotage == "storage":
        monkeypatch.setattr(QuantizedWeight, "nbytes", property(lambda weight: weight.packed.nbytes))
    elif sabotage == "formula":
        monkeypatch.setattr(snippet, "int4", lambda group: snippet.Format(bits=4, scale_bytes=0, group=group))
    elif sabotage == "file":
        whole = snippet.tensors
        monkeypatch.setattr(snippet, "tensors", lambda weights: {
            name: part for name, part in whole(weights).items() if not name.endswith(".scale")
        })  # fmt: skip
    else:
        monkeypatch.setattr(quantized, "pack_int4", lambda codes: codes.to(torch.uint8))
    broken = _minilm_values()
    assert not any(claims.holds(claim, broken) for claim in _minilm_claims())


def test_scales_dropped_everywhere_at_once_still_break_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QuantizedWeight, "nbytes", property(lambda weight: weight.packed.nbytes))
    monkeypatch.setattr(snippet, "int4", lambda group: snippet.Format(bits=4, scale_bytes=0, group=group))
    monkeypatch.setattr(snippet, "INT8", snippet.Format(bits=8, scale_bytes=0))
    broken = snippet.model_bytes("llama", snippet.shapes_only(shapes.LLAMA_3_8B), snippet.formats("llama"))
    assert broken["llama_apart_bytes"] == 0  # the counts agree with each other, and are wrong
    failing = [claim.id for claim in read_page(PAGE).claims if claim.id in ("wb-llama-kept", "wb-llama-all")
               and not claims.holds(claim, broken)]  # fmt: skip
    assert failing == ["wb-llama-kept", "wb-llama-all"]


@pytest.mark.models
def test_trap_the_ratio_of_the_bits_is_not_the_ratio_of_the_bytes(values: dict[str, float]) -> None:
    for model in ("minilm", "smollm2", "llama"):
        bf16, int8, int4 = (values[f"{model}_{how}_kept_bytes"] for how in ("bf16", "int8", "int4"))
        assert int8 > bf16 / 2 and int4 > bf16 / 4
        assert int4 - values[f"{model}_int4_linear_bytes"] == bf16 - values[f"{model}_bf16_linear_bytes"]
    saved = {m: 1 - values[f"{m}_int4_kept_bytes"] / values[f"{m}_bf16_kept_bytes"] for m in snippet.GROUPS}
    assert saved["minilm"] < saved["smollm2"] < saved["llama"] < 0.75


def test_trap_weights_on_the_grid_already_look_free_and_take_the_same_bytes() -> None:
    fresh = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    once = quantize_groups_int4(fresh, 32, scale_dtype=torch.float32)
    on_grid = once.dequantize()
    again = quantize_groups_int4(on_grid, 32, scale_dtype=torch.float32)
    assert (on_grid - fresh).abs().max() > 0.1
    assert torch.allclose(again.dequantize(), on_grid, rtol=1e-6, atol=0)
    assert torch.equal(again.codes(), once.codes())
    assert again.nbytes == once.nbytes == snippet.formula_bytes((6, 64), snippet.Format(4, 4, 32))


def test_a_group_that_does_not_divide_the_columns_is_refused_and_padding_costs_more() -> None:
    row = torch.ones(1, 576)
    with pytest.raises(ValueError, match="576 columns do not divide by a group of 128"):
        snippet.stored(row, snippet.int4(128))
    assert snippet.row_bytes(row, snippet.int4(128)) == snippet.formula_bytes((1, 640), snippet.int4(128))
    assert snippet.row_bytes(row, snippet.int4(128)) > snippet.row_bytes(row, snippet.int4(64))
    assert snippet.row_bytes(row, snippet.INT8) == 576 + 4


def test_smaller_groups_take_more_scales() -> None:
    columns = snippet.group_columns(torch.randn(3, 768, generator=torch.Generator().manual_seed(2)))
    for group, bits, share in zip(columns["group_count"], columns["weight_bits"], columns["scale_share"], strict=True):
        assert bits == 4 + 16 / group
        assert share == pytest.approx(1 - 4 / bits)
    assert columns["group_count"][-1] == 768
    assert columns["zero_point_bits"] == [4 + 20 / group for group in columns["group_count"]]


def test_codes_of_a_matrix_are_as_many_as_the_grid_has() -> None:
    found = snippet.code_values(torch.randn(64, 512, generator=torch.Generator().manual_seed(3)))
    assert (found["int8_codes_count"], found["int4_codes_count"]) == (2 * 127 + 1, 2 * 7 + 1)
    assert (found["int8_scales_count"], found["int4_scales_count"]) == (64, 64 * 4)
    assert found["int4_matrix_bytes"] == 64 * 512 // 2 + 2 * 64 * 4


def test_size_columns_rise_with_the_share_of_linear_layers() -> None:
    columns = snippet.size_columns()
    assert columns["linear_share"] == sorted(columns["linear_share"])
    assert columns["int4_ratio"] == sorted(columns["int4_ratio"], reverse=True)
    large = shapes.parameters(shapes.LLAMA_3_70B)
    assert 8 * columns["int4_bytes"][-1] == 4.125 * large.linear + 16 * (large.total - large.linear)
    assert columns["linear_share"][-1] == large.linear / large.total


@pytest.mark.models
def test_the_allocator_holds_no_less_than_the_tensors_take(values: dict[str, float]) -> None:
    tensors = 103 + 36  # a matrix of the blocks is codes and scales
    rounding = values["minilm_int4_held_bytes"] - values["minilm_int4_storage_bytes"]
    assert 0 < rounding < tensors * 2 * 4096


def test_a_tied_head_is_counted_once() -> None:
    tied = dataclasses.replace(shapes.LLAMA_3_8B, tied=True)
    once, twice = (snippet.model_bytes("m", snippet.shapes_only(g), {"int8": snippet.INT8})["m_int8_kept_bytes"]
                   for g in (tied, shapes.LLAMA_3_8B))  # fmt: skip
    assert twice - once == 2 * 128_256 * 4096


def test_another_reference_than_bf16_is_refused() -> None:
    with pytest.raises(ValueError, match="the reference is BF16"):
        snippet.measure(dtype=torch.float16)

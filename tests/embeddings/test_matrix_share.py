"""How much is the embedding matrix? Counts by two ways on odd shapes, bytes by the allocator, each trap shown wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from snippets.embeddings import matrix_share as snippet
from snippets.models import smollm2
from snippets.models.decoder import Decoder
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry

ODD = [(1, 6, 3, 1, 2, 5, 7), (2, 10, 5, 5, 2, 7, 3), (3, 14, 7, 1, 2, 3, 11)]


def odd_geometry(sizes: tuple[int, ...], tied: bool) -> Geometry:
    layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary = sizes
    return Geometry("odd", layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary, tied, "test")


@pytest.fixture(scope="module")
def model() -> Decoder:
    return smollm2.decoder(torch.float32)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sizes", ODD)
def test_shape_counts_what_a_real_decoder_holds(sizes: tuple[int, ...], tied: bool) -> None:
    geometry = odd_geometry(sizes, tied)
    real = Decoder(geometry)
    shares = snippet.llama_style(geometry)
    assert shares.total == sum({p.data_ptr(): p.numel() for p in real.parameters()}.values())
    assert shares.matrix == real.embed_tokens.weight.numel()
    assert shares.read_at_decode == shares.total - (0 if tied else shares.matrix)


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_other_families_agree_with_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="peers: transformers is not installed")
    if name == "gpt2":
        theirs, ours = transformers.GPT2LMHeadModel, snippet.gpt2_small()
        config = transformers.GPT2Config()
    else:
        theirs, ours = transformers.Gemma3ForCausalLM, snippet.llama_style(snippet.GEMMA_3_270M, more_norms=2)
        config = transformers.Gemma3TextConfig(
            vocab_size=262_144, hidden_size=640, num_hidden_layers=18, num_attention_heads=4,
            num_key_value_heads=1, head_dim=256, intermediate_size=2048,
        )  # fmt: skip
    with torch.device("meta"):
        built = theirs(config)
    built.tie_weights()
    assert sum(p.numel() for p in built.parameters()) == ours.total
    assert built.get_input_embeddings().weight.numel() == ours.matrix


def test_published_totals() -> None:
    totals = {m.name: m.total for m in snippet.public()}
    assert totals["GPT-2 small"] == 124_439_808
    assert totals["Gemma-3-270M"] == 268_098_176
    assert totals["Llama-3.2-1B"] == 1_235_814_400
    assert totals["Llama-3-8B"] == 8_030_261_248
    assert totals["Llama-3-70B"] == 70_553_706_496


def test_columns_divide_and_learned_positions_are_not_read() -> None:
    columns = snippet.public_columns()
    assert len({len(column) for column in columns.values()}) == 1
    for model, whole, matrix, share in zip(
        columns["model"], columns["total_count"], columns["matrix_count"], columns["matrix_share"], strict=True
    ):
        assert share == pytest.approx(matrix / whole), model
    gpt2 = snippet.gpt2_small()
    assert gpt2.read_at_decode == gpt2.total - 1024 * 768


def test_trap_a_state_dict_counts_the_tied_matrix_twice(model: Decoder) -> None:
    values = snippet.part_values(model)
    assert values["total_count"] == 134_515_008 == values["formula_count"]
    assert values["total_count"] == sum(p.numel() for p in model.parameters())
    assert values["state_dict_count"] - values["total_count"] == values["embedding_count"]


@pytest.mark.parametrize("sizes", ODD)
def test_trap_assigned_weights_untie_and_give_the_same_logits(sizes: tuple[int, ...]) -> None:
    tied = Decoder(odd_geometry(sizes, True)).requires_grad_(False)
    values = snippet.tie_values(tied)
    assert values["tied_offset_bytes"] == 0
    assert values["untied_bytes"] - values["model_bytes"] == values["matrix_bytes"]
    assert tied.lm_head.weight is tied.embed_tokens.weight  # the model measured is left as it was
    loose = snippet.tie_values(Decoder(odd_geometry(sizes, False)).requires_grad_(False))
    assert loose["tied_offset_bytes"] > 0
    assert loose["untied_bytes"] == loose["model_bytes"]


@pytest.mark.parametrize("tokens", [1, 3, 7])
def test_logits_weigh_positions_times_vocabulary(tokens: int, model: Decoder) -> None:
    values = snippet.logits_values(model, tokens)
    assert values["every_logits_bytes"] == tokens * 49_152 * 4
    assert values["last_logits_bytes"] == 49_152 * 4
    assert values["last_logits_difference"] <= 1e-5
    if tokens > 1:
        assert snippet.logits_values(model, tokens, last=0)["last_logits_difference"] > 0.01


@pytest.mark.parametrize(("tokens", "vocabulary", "hidden", "chunk"), [(7, 5, 3, 2), (5, 11, 2, 5), (3, 2, 7, 1)])
def test_chunked_loss_and_gradient_are_autograds_own(tokens: int, vocabulary: int, hidden: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    matrix = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    loss, gradient = snippet.chunked_loss(states, matrix, targets, chunk)
    plain = states.clone().requires_grad_()
    whole = F.cross_entropy(plain @ matrix.T, targets)
    whole.backward()
    assert loss == pytest.approx(float(whole.detach()), rel=1e-12)
    assert plain.grad is not None
    assert torch.allclose(gradient, plain.grad, atol=1e-12)


def test_trap_the_loss_over_all_positions_peaks_at_several_times_the_logits(model: Decoder) -> None:
    values = snippet.loss_values(model.embed_tokens.weight, tokens=96, chunk=12)
    assert values["whole_peak_ratio"] > 2
    assert values["whole_peak_ratio"] / values["peak_saved_ratio"] < 1  # chunked, the peak is under one set of logits
    assert values["chunked_loss_difference"] <= 1e-5


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_divided_rows_look_up_and_choose_like_the_whole(ranks: int) -> None:
    matrix = torch.randn(17, 5, generator=torch.Generator().manual_seed(2))
    values = snippet.parallel_values(matrix, torch.tensor([0, 16, 3, 3, 9]), ranks)
    assert values["rank_rows_count"] == -(-17 // ranks)
    assert values["rank_lookup_differing_count"] == 0 == values["rank_greedy_differing_count"]


def test_packed_linears_by_formula_and_by_packing(model: Decoder) -> None:
    values = snippet.quantized_values(model)
    assert values["packed_linear_bytes"] == values["packed_formula_bytes"]
    assert 2 * model.embed_tokens.weight.numel() > values["packed_linear_bytes"]  # the matrix outweighs all layers


def test_predictions_are_bytes_over_bandwidth() -> None:
    values = snippet.predicted_values()
    assert values["h100_head_seconds"] == pytest.approx(2 * 128_256 * 4096 / 3.35e12)
    assert values["h100_head_seconds"] / values["h100_step_seconds"] == pytest.approx(0.07, abs=0.001)


@pytest.mark.timing
def test_timing_on_a_small_shape_names_what_was_timed() -> None:
    small = Geometry(**{**SMOLLM2_135M.__dict__, "vocabulary": 4096})
    values = snippet.timed_values(torch.device("cpu"), rounds=3, rows=2, geometry=small)
    assert values["head_seconds"] > 0 < values["head_over_layer_ratio"]
    assert values["many_rows_count"] == 2
    assert values["amortised_ratio"] > 0
    assert LLAMA_3_8B.linear_shapes["mlp.up_proj"] == (14_336, 4096)

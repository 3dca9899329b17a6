"""Does pruning speed up inference? Each way to prune by hand on odd sizes, storage counted, each trap shown wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.sparse import _semi_structured_conversions as storage

from snippets.instruments.memory import storage_bytes
from snippets.models import smollm2, trained
from snippets.models.rounding import matrices
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M
from snippets.throughput import pruning
from tests.odd import ODD, odd_decoder, odd_ids
from tests.small import failing_small, measured_small

pytestmark = pytest.mark.models


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns", "share"), [(2, 5, 0.4), (3, 7, 0.5), (600, 11, 0.9), (5, 3, 0.0)])
def test_both_ways_to_store_zeros_hold_the_same_weights(rows: int, columns: int, share: float) -> None:
    kept = pruning.kept_columns((rows, columns), share)
    values = draw(*kept.shape).abs() + 1
    dense = pruning.zeros_dense(kept, values, columns)
    csr = pruning.zeros_left_out(kept, values, columns)
    assert torch.equal(csr.to_dense(), dense)
    assert int((dense == 0).sum()) == rows * round(share * columns)
    x = draw(4, columns, seed=1)
    assert torch.allclose((csr @ x.T).T, F.linear(x, dense), atol=1e-5)


@pytest.mark.parametrize(("rows", "columns", "share"), [(2, 5, 0.4), (7, 13, 0.7)])
def test_csr_bytes_are_those_stored(rows: int, columns: int, share: float) -> None:
    kept = pruning.kept_columns((rows, columns), share)
    csr = pruning.zeros_left_out(kept, torch.ones(kept.shape), columns)
    assert pruning.csr_bytes((rows, columns), kept.shape[1], 4) == storage_bytes(csr)
    by_itself = csr.to_dense().to_sparse_csr()  # PyTorch's own choice of index is twice as long
    parts = (by_itself.crow_indices(), by_itself.col_indices(), by_itself.values())
    assert pruning.csr_bytes((rows, columns), kept.shape[1], 4, index_bytes=8) == sum(part.nbytes for part in parts)


def test_trap_zeros_stored_dense_save_nothing_and_a_mask_beside_them_costs_more() -> None:
    dense = draw(7, 10)
    zeros = dense * (draw(7, 10, seed=1) > 0)
    assert storage_bytes(zeros) == storage_bytes(dense) and pruning.counted(zeros) == pruning.counted(dense) == 140
    assert pruning.counted(dense[:3]) == 60
    assert pruning.masked_bytes((7, 10)) == 3 * storage_bytes(dense)


def test_lowest_are_removed_row_by_row() -> None:
    weight = torch.tensor([[4.0, 0.1, 1, -2, -3], [-5, 3, -1, 2, 4]])
    kept = pruning.lowest_removed(weight, weight.abs(), 0.4)
    assert kept.tolist() == [[4, 0, 0, -2, -3], [-5, 3, 0, 0, 4]]
    assert torch.equal(pruning.lowest_removed(weight, weight.abs(), 0.0), weight)


def test_wanda_by_hand() -> None:
    """Norms one, two, eight, three: a small weight on a loud input stays, a large one on a quiet input goes."""
    weight = torch.tensor([[4.0, 0, 1, -1], [3, -2, -1, -3], [-3, 1, 0, 2]])
    norms = torch.tensor([1.0, 2, 8, 3])
    score = pruning.wanda(weight, norms)
    assert score.tolist() == [[4, 0, 8, 3], [3, 4, 8, 9], [3, 2, 0, 6]]
    by_score = pruning.lowest_removed(weight, score, 0.5)
    assert by_score.tolist() == [[4, 0, 1, 0], [0, 0, -1, -3], [-3, 0, 0, 2]]
    by_size = pruning.lowest_removed(weight, pruning.magnitude(weight, norms), 0.5)
    assert by_size[1].tolist() == [3, 0, 0, -3]


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (5, 28)])
def test_two_of_four_keeps_the_highest_two(rows: int, columns: int) -> None:
    weight = draw(rows, columns)
    groups = pruning.two_four(weight).unflatten(1, (-1, 4))
    assert ((groups != 0).sum(-1) == 2).all()
    assert torch.equal(groups.abs().sum(-1), weight.abs().unflatten(1, (-1, 4)).topk(2, -1).values.sum(-1))
    reverse = pruning.two_four(weight, -weight.abs())
    assert torch.equal(reverse + pruning.two_four(weight), weight)


def test_trap_half_zeros_are_not_two_of_four() -> None:
    """The format keeps any matrix of that pattern, and silently drops weights of another one."""
    weight = draw(32, 64).bfloat16()
    for changed, survives in (
        (pruning.two_four(weight), True),
        (pruning.lowest_removed(weight, weight.abs().float(), 0.5), False),
    ):
        packed, codes = storage.sparse_semi_structured_from_dense_cutlass(changed)
        assert storage_bytes([packed, codes]) * 16 == weight.nbytes * 9
        assert torch.equal(storage.sparse_semi_structured_to_dense_cutlass(packed, codes), changed) == survives


def norms_of(decoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    return pruning.input_norms(decoder, odd_ids(2, 7))  # type: ignore[arg-type]


def test_norms_are_those_of_the_inputs() -> None:
    decoder, ids = odd_decoder(), odd_ids(2, 7)
    x = decoder.layers[0].get_submodule("input_layernorm")(decoder.embed_tokens(ids))
    assert torch.allclose(norms_of(decoder)["layers.0.self_attn.k_proj"], x.flatten(0, 1).norm(dim=0))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_removed_neurons_and_zero_neurons_compute_the_same(share: float) -> None:
    decoder = odd_decoder()
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    scores = pruning.neuron_scores(decoder, norms_of(decoder))
    zeros = pruning.without_neurons(decoder, scores, share, shrink=False)
    removed = pruning.without_neurons(decoder, scores, share)
    assert removed.geometry.ffn == ODD.ffn - round(share * ODD.ffn) and zeros.geometry.ffn == ODD.ffn
    ids = odd_ids(2, 5)
    assert torch.allclose(zeros(ids), removed(ids), atol=1e-4)
    assert torch.equal(zeros(ids), decoder(ids)) == (share == 0)
    gone = round(share * ODD.ffn)
    for name, weight in matrices(zeros).items():
        lost = {"gate_proj": weight.shape[1], "up_proj": weight.shape[1], "down_proj": len(weight)}
        assert int((weight == 0).sum()) == gone * lost.get(name.split(".")[-1], 0)
    assert all(torch.equal(before[name], weight) for name, weight in decoder.state_dict().items())


def test_the_neurons_kept_are_those_of_largest_output() -> None:
    decoder = odd_decoder()
    norms = norms_of(decoder)
    down = decoder.get_parameter("layers.1.mlp.down_proj.weight")
    by_hand = [float(norms["layers.1.mlp.down_proj"][n] * down[:, n].norm()) for n in range(ODD.ffn)]
    assert pruning.neuron_scores(decoder, norms)[1].tolist() == pytest.approx(by_hand)


def test_a_group_of_heads_goes_and_layers_go() -> None:
    decoder = odd_decoder()
    without = pruning.without_heads(decoder, norms_of(decoder))
    width = ODD.heads // ODD.kv_heads * ODD.head_dim
    for name, weight in matrices(without).items():
        lost = width * len(weight) if name.endswith("o_proj") else 0
        assert int((weight == 0).sum()) == lost
    assert len(pruning.without_layers(decoder, 1).layers) == ODD.layers - 1
    assert len(decoder.layers) == ODD.layers and (matrices(decoder)["layers.0.self_attn.o_proj"] != 0).all()


def test_every_variant_takes_the_share_that_it_says() -> None:
    """Of real weights, whose sizes tie: they lay on a grid."""
    decoder = smollm2.decoder()
    weight = matrices(decoder)["layers.3.mlp.up_proj"]
    for share in (0.1, 0.5, 0.9):
        zeros = (pruning.lowest_removed(weight, weight.abs(), share) == 0).float().mean()
        assert float(zeros) == pytest.approx(share, abs=0.005)


def test_nothing_removed_costs_nothing_and_more_costs_more() -> None:
    decoder, windows = trained.decoder("tiny"), trained.held_out_windows(2, 64)
    norms = pruning.input_norms(decoder, windows)
    base = pruning.window_nats(decoder, windows)
    losses = [
        float(
            (
                pruning.window_nats(
                    pruning.pruned(decoder, norms, pruning.unstructured(pruning.magnitude, share)), windows
                )
                - base
            ).mean()
        )
        for share in (0.0, 0.5, 0.9)
    ]
    assert losses[0] == 0 and 0 < losses[1] < losses[2]


def test_crossing_lies_between_the_points_around_it() -> None:
    assert pruning.crossing((0.5, 0.75), (0.5, 2.0)) == pytest.approx(1 - (0.5 * 0.25) ** 0.5)
    assert pruning.crossing((0.5, 0.75, 0.9), (0.1, 0.2, 0.3)) == 1.0
    assert pruning.crossing((0.5, 0.75), (1.5, 2.0)) == 0.5


def test_weights_read_a_step_are_those_of_the_decoder() -> None:
    decoder = smollm2.decoder()
    counts = pruning.amdahl_values()
    assert counts["smol_read_count"] == sum(weight.numel() for weight in matrices(decoder, ()).values())
    ffn = sum(weight.numel() for name, weight in matrices(decoder).items() if ".mlp." in name)
    assert 2 * counts["smol_removed_count"] == ffn == pruning.ffn_count(SMOLLM2_135M)
    assert 2 * counts["llama_removed_count"] == 32 * 3 * LLAMA_3_8B.hidden * LLAMA_3_8B.ffn


def test_predictions_follow_bytes_then_operations() -> None:
    assert pruning.predicted("dense", 1) / pruning.predicted("two of four", 1) == pytest.approx(16 / 9, rel=0.01)
    assert pruning.predicted("dense", 1 << 16) / pruning.predicted("two of four", 1 << 16) == pytest.approx(2)
    assert pruning.predicted("CSR", 1) < pruning.predicted("dense", 1) < pruning.predicted("CSR", 4096)


def test_a_recovered_decoder_is_as_small_as_a_halved_one() -> None:
    halved, finished = pruning.halved(0), pruning.recovered(0)
    assert finished.geometry.ffn == halved.geometry.ffn == trained.GEOMETRIES["small"].ffn // 2
    assert storage_bytes(finished) < storage_bytes(trained.decoder("small", 0))


def test_claims_of_counts_and_losses_hold_at_small_scale() -> None:
    assert measured_small("throughput/pruning")["two_four_wrong_count"] == 0
    assert failing_small("throughput/pruning") == []

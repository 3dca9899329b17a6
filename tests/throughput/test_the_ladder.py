"""Every way of storing a matrix multiplies as it does; the compiled decoder is the plain one; traps are wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from snippets.models import decoder as plain
from snippets.models import fast_decoder as fast
from snippets.models.decoder import Decoder, generate, initialize
from snippets.models.shapes import Geometry
from snippets.throughput import the_ladder as ladder

# Blocks of 32 divide what is multiplied; nothing else is even.
EVEN = Geometry("even", 3, 96, 9, 3, 32, 160, 53, True, "none", rope_theta=1_000.0)


def decoder() -> Decoder:
    made = Decoder(EVEN)
    initialize(made, seed=3, std=0.3)
    return made.requires_grad_(False).eval()


def run(make: fast.Make, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
    state = {name: tensor for name, tensor in decoder().state_dict().items() if name != "lm_head.weight"}
    weights = fast.stored(state, EVEN, make, make, torch.float32)
    cache = fast.empty_cache(EVEN, len(ids), 23, torch.float32)
    return ladder.Rung(fast.Greedy(EVEN), weights, cache, 1).generate(ids, new_tokens)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_fused_step_writes_what_the_plain_decoder_writes(batch: int) -> None:
    ids = torch.randint(53, (batch, 7), generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(fast.fp32, ids, 11), generate(decoder(), ids, 11))


@pytest.mark.parametrize("make", [fast.bf16, fast.int8_rows, fast.int8_columns, fast.int8_blocks, fast.int4_blocks])
def test_a_row_is_multiplied_by_what_is_stored(make: fast.Make) -> None:
    weight, x = torch.randn(7, 96, generator=torch.Generator().manual_seed(2)), torch.linspace(-1, 1, 96)[None]
    kept = make(weight)
    expected = x.double() @ fast.restored(kept).double().T
    assert torch.allclose(fast.multiply(x, kept).double(), expected, atol=1e-4)
    assert 0 < (fast.restored(kept) - weight).abs().max() < 0.4


def test_rounding_again_on_the_same_grid_is_free_and_on_another_it_is_not() -> None:
    weight = torch.randn(7, 96, generator=torch.Generator().manual_seed(4))
    once = fast.restored(fast.int4_blocks(weight))
    again = fast.restored(fast.int4_blocks(once))
    assert torch.allclose(again, once, atol=1e-6)  # the trap: INT4 looks lossless on weights that were INT4
    assert not torch.allclose(once, weight, atol=1e-2)


def test_many_rows_in_int8_round_their_activations_too() -> None:
    weight, x = torch.randn(32, 96), torch.randn(17, 96)
    kept = fast.int8_rows(weight)
    exact = x @ fast.restored(kept).T
    apart = (fast.multiply(x, kept) - exact).abs().max() / exact.abs().max()
    assert 0 < apart < 0.02
    assert torch.equal(fast.multiply(x, fast.int8_columns(weight)), fast.multiply(x, kept))


def test_positions_are_rotated_as_the_plain_decoder_does() -> None:
    cos, sin = plain.rotation(EVEN, 5, 7, torch.ones(1))
    x = torch.randn(2, 3, 7, EVEN.head_dim, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(fast.rotate(x, cos, sin), plain.rotate(x, cos, sin), atol=1e-6)
    assert not torch.allclose(fast.rotate(x, cos, sin), x, atol=1e-2)


@pytest.mark.parametrize(("start", "new", "room"), [(0, 301, 301), (0, 7, 7), (3, 5, 11), (130, 1, 139)])
def test_blocks_attend_to_what_stands_before_and_to_nothing_else(start: int, new: int, room: int) -> None:
    draw = torch.Generator().manual_seed(6)
    queries, keys, values = (
        torch.randn(shape, generator=draw) for shape in ((2, 3, 5, new, 8), *[(2, 3, room, 8)] * 2)
    )
    places = torch.arange(start, start + new)
    mask = torch.arange(room) <= places[:, None]
    expected = F.scaled_dot_product_attention(queries, keys[:, :, None], values[:, :, None], attn_mask=mask)
    assert torch.allclose(fast.attend(queries, keys, values, places), expected, atol=1e-5)


def test_proposals_follow_the_last_time_the_newest_two_stood() -> None:
    assert ladder.proposals([1, 2, 3, 4, 1, 2], 3) == [3, 4, 1]
    assert ladder.proposals([1, 2, 3, 1, 2, 9, 1, 2], 2) == [9, 1]
    assert ladder.proposals([5, 6, 7], 2) == [7, 7]
    assert ladder.proposals([1, 1, 1], 2) == [1, 1]


def test_a_checked_proposal_writes_what_one_token_at_a_time_does() -> None:
    state = {name: tensor for name, tensor in decoder().state_dict().items() if name != "lm_head.weight"}
    weights = fast.stored(state, EVEN, fast.fp32, fast.fp32, torch.float32)
    cache = fast.empty_cache(EVEN, 1, 64, torch.float32)
    ids = torch.tensor([[3, 5, 7, 11, 3, 5, 7, 11]])
    looked = ladder.Rung(fast.Greedy(EVEN, every=True), weights, cache, 4)
    tokens, steps = looked.written(ids, looked.read(ids), 23)
    assert torch.equal(tokens, generate(decoder(), ids, 23)) and steps <= 22


def test_bytes_follow_from_bits() -> None:
    head = ladder.G.hidden * ladder.G.vocabulary
    assert ladder.matrix_bytes(head, "INT4 blocks, exact") == head * 9 // 8
    assert ladder.matrix_bytes(10, "BF16") * 2 == ladder.matrix_bytes(10, "FP32 compiled") == 40


def test_operations_of_a_token_are_twice_the_weights_and_attention() -> None:
    assert ladder.step_flops(1, room=0) == 2 * 134_479_872
    assert ladder.step_flops(7) == 7 * ladder.step_flops(1)


@pytest.mark.parametrize(("batch", "new", "room"), [(32, 1, 128), (1, 512, 512)])
def test_parts_add_up_to_the_operations_of_the_step(batch: int, new: int, room: int) -> None:
    parts = ladder.part_flops(batch, new, room)
    places = range(fast.PROMPT_BLOCK, room + 1, fast.PROMPT_BLOCK)
    seen = sum(fast.PROMPT_BLOCK * end for end in places) if new == room else batch * room
    head = 2 * ladder.G.hidden * ladder.G.vocabulary
    products = ladder.step_flops(batch * new, room=0) - (head * new if new > 1 else 0)
    assert parts["INT8 products"] == products
    assert parts["attention"] == 4 * ladder.G.layers * ladder.G.heads * ladder.G.head_dim * seen
    assert max(parts["quantizing"], parts["rescaling"], parts["the rest"]) < parts["INT8 products"] / 100


def test_a_small_model_waits_for_launches_until_one_graph_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = ladder.G.layers * ladder.COMPILED_LAUNCHES
    steps = {label: (None, 1, 1, launches) for label in (*ladder.RESPONDING, "cache")}
    monkeypatch.setattr(ladder, "climbed", lambda built: steps)
    monkeypatch.setattr(ladder, "step_bytes", lambda one: 335_000_000)
    planned = ladder.predicted_columns(None)  # type: ignore[arg-type]
    found = ladder.predicted_values(planned)
    assert planned["bound_by"] == ["launches"] * 3
    assert found["h100_compiled_seconds"] == pytest.approx(launches * 4e-6)
    assert found["h100_int4_graph_seconds"] == pytest.approx(335e6 / 3350e9)


def test_a_missing_peer_is_shown_as_not_measured_and_ratios_come_from_the_same_file() -> None:
    rates = {"decode": 10.0, "prefill": 30.0, "batch": 40.0}
    recorded = {
        "runtimes": {
            "ours": {
                "version": "2",
                "tokens_per_second": {
                    "ours, INT4 blocks, exact": {"decode": 15.0},
                    "ours, INT8 and lookup, copying": {"decode": 50.0},
                    "ours, INT8 on both sides": {"prefill": 60.0, "batch": 20.0},
                },
            },
            "llama.cpp": {"version": "0.3", "tokens_per_second": {"llama.cpp, Q4_1": rates}},
            "openvino": {"version": "2026", "tokens_per_second": {"OpenVINO GenAI": {**rates, "decode": 5.0}}},
            "onnxruntime": {"version": "1", "not_measured": "no module"},
        }
    }
    found = ladder.peer_values(recorded)
    assert (found["exact_llama_ratio"], found["exact_openvino_ratio"]) == (1.5, 3.0)
    assert (found["prefill_peer_ratio"], found["batch_peer_ratio"]) == (2.0, 0.5)
    columns = ladder.peer_columns(recorded)
    assert columns["runtime"][-1] == "onnxruntime" and columns["decode_rate"][-1] == "not measured"

"""The topic's frontier: bytes by formula are those of packed layers, and a scheme changes nothing but its layers."""

from __future__ import annotations

import pytest
import torch

from snippets.instruments.memory import storage_bytes
from snippets.models.decoder import Decoder, initialize
from snippets.models.products import replace_linears
from snippets.models.quantized import quantize_groups_int4, quantize_rows_int8
from snippets.models.shapes import Geometry
from snippets.quantization import index

ODD = Geometry("odd", 3, 192, 3, 1, 64, 320, 50, True, "none")


@pytest.fixture
def decoder() -> Decoder:
    made = initialize(Decoder(ODD), seed=0)
    assert isinstance(made, Decoder)
    return made.to(torch.bfloat16).requires_grad_(False).eval()


def test_bytes_by_formula_equal_the_packed_tensors(decoder: Decoder) -> None:
    held = index.schemes(torch.bfloat16)
    linear = [m.weight for n, m in decoder.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    kept = storage_bytes(decoder) - sum(w.nbytes for w in linear)
    packed = {
        "INT8 rows": sum(quantize_rows_int8(w, torch.bfloat16).nbytes for w in linear),
        "INT8 rows and activations": sum(quantize_rows_int8(w, torch.float32).nbytes for w in linear),
        "INT4-g64": sum(quantize_groups_int4(w, 64).nbytes for w in linear),
    }
    assert {name: index.held_bytes(decoder, held[name]) - kept for name in packed} == packed


def test_a_scheme_replaces_every_linear_layer_and_nothing_else(decoder: Decoder) -> None:
    for name, how in index.schemes(torch.bfloat16).items():
        if how.layer:
            made = initialize(Decoder(ODD), seed=0).to(torch.bfloat16)
            replaced = replace_linears(made, how.layer)
            assert replaced == 7 * ODD.layers, name
            assert isinstance(made, Decoder) and torch.equal(made.embed_tokens.weight, decoder.embed_tokens.weight)


def test_frontier_on_a_small_model_has_every_scheme_and_times_those_with_a_kernel(decoder: Decoder) -> None:
    windows = torch.randint(0, ODD.vocabulary, (3, 17), generator=torch.Generator().manual_seed(1))
    points = index.frontier(decoder, windows, context=5, rounds=2)
    names = [index.BASE, *index.schemes(torch.bfloat16)]
    assert [p.scheme for p in points] == names
    assert [p.step_seconds is not None for p in points] == [True, True, True, True, False, False]
    assert all(p.nats.shape == (3,) and p.nats.dtype == torch.float64 for p in points)
    assert all(later.model_bytes < points[0].model_bytes for later in points[1:])
    losses, speeds = index.loss_columns(points), index.speed_columns(points)
    assert losses["added_nats"][0] == losses["error_nats"][0] == 0
    by_hand = float((points[3].nats - points[0].nats).mean())
    assert losses["added_nats"][3] == pytest.approx(by_hand, abs=1e-12)
    assert speeds["speed_ratio"][0] == 1 and len(speeds["scheme"]) == 4


def test_a_step_leaves_the_cache_as_long_as_it_found_it(decoder: Decoder) -> None:
    decode = index.step(decoder, context=5)
    decode()
    decode()  # A step that let the cache grow would have no room for the second.

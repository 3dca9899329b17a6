"""Which model fits which card? Sums agree with tensors on odd shapes, and each trap is shown wrong."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from snippets.models import capacity, cards, shapes
from snippets.models.shapes import Geometry
from snippets.quantization import which_model_fits as snippet
from tests.small import controlled, measured_small

ODD = Geometry("odd", 3, 40, 10, 5, 14, 12, 11, False, "none")


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4", "int4_all"])
@pytest.mark.parametrize("tied", [True, False])
def test_formula_equals_the_tensors_of_an_odd_decoder(weights: str, tied: bool) -> None:
    geometry = dataclasses.replace(ODD, tied=tied)
    assert capacity.weights_bytes(geometry, weights, 2) == snippet.held_bytes(geometry, weights, 2)


def test_a_tied_head_is_held_once() -> None:
    matrix = 2 * ODD.vocabulary * ODD.hidden
    assert snippet.held_bytes(ODD, "bf16") - snippet.held_bytes(dataclasses.replace(ODD, tied=True), "bf16") == matrix


def test_whiteboard_by_hand() -> None:
    """The page's derivation with numbers of its own: published parameter counts, hundredths of a GiB."""
    values = snippet.board_values()
    card, row = 2364 * 2**30 // 100, 2 * (3 * 4096 + 3 * 14336 + 2 * 128)
    left = card - 2 * 8_030_261_248 - 2**30 - 2048 * row - (row + 6 * 128_256)
    assert values["llama_8b_left_tokens"] == left // (2 * 32 * 8 * 128 * 2) == 61_192
    per_user = 8192 * 131_072 + row + 6 * 128_256
    assert values["llama_8b_users_count"] == (left + row + 6 * 128_256) // per_user == 7
    norms = 2 * (2 * 80 + 1) * 8192
    assert 2 * (values["llama_70b_half_bytes"] - norms) == 2 * 70_553_706_496 - norms


def test_the_table_says_the_first_precision_that_fits() -> None:
    columns = snippet.first_columns()
    order = {scheme.label: key for key, scheme in capacity.SCHEMES.items()}
    for model, name in zip(snippet.SHOWN, snippet.keys(snippet.SHOWN), strict=True):
        for card, label in zip(snippet.SIZES, columns[name], strict=True):
            better = list(order)[: list(order).index(label)] if label in order else list(order)
            assert not any(snippet.fits(model, card, order[each]) for each in better)
            assert label == "–" or snippet.fits(model, card, order[label])
    assert {"BF16", "INT8 rows", "INT4 groups", "–"} <= {label for name in list(columns)[1:] for label in columns[name]}


def test_trap_gb_less_gib_admits_what_does_not_fit() -> None:
    """Weights in GB beside a label taken as GiB, and nothing for the rest: more tokens than there are."""
    naive = (80 - 16) * 2**30 // capacity.token_bytes(shapes.LLAMA_3_8B)
    right = capacity.budget(cards.on_card("llama-3-8b", "80"))
    assert naive > right.left_tokens
    asked = cards.on_card("llama-3-8b", "80", context_tokens=8192, users=naive // 8192)
    assert not capacity.budget(asked).fits
    with pytest.raises(capacity.CapacityError, match="too much"):
        capacity.admit(asked)


def test_labels_are_neither_unit() -> None:
    columns = snippet.card_columns()
    for label, decimal, binary, usable in zip(*columns.values(), strict=True):
        assert usable < binary, label
        assert usable != decimal, label
    assert columns["usable_bytes"][1] < columns["decimal_bytes"][1]  # the T4 has less than its label in either unit


def test_the_widest_step_is_of_tokens_and_not_of_layers() -> None:
    """A deeper model allocates no more at its peak, measured."""
    from snippets.instruments.memory import peak_allocated_by
    from snippets.models.decoder import Decoder, initialize

    ids, peaks = torch.ones(1, 61, dtype=torch.long), []
    for layers in (2, 5):
        geometry = Geometry("wide", layers, 48, 6, 2, 8, 2053, 11, False, "none")
        model = initialize(Decoder(geometry), seed=0).requires_grad_(False)
        with torch.inference_mode():
            peaks.append(peak_allocated_by(functools.partial(model, ids), device="cpu")[1])
    assert peaks[0] == peaks[1] == 61 * capacity.row_bytes(geometry, 4)


@pytest.mark.models
def test_control_breaks_what_the_page_claims() -> None:
    found, control = measured_small("quantization/which_model_fits"), controlled("quantization/which_model_fits")
    assert found["smollm2_apart_bytes"] == 0 < found["smollm2_step_bytes"] < found["unfused_step_bytes"]
    assert found["shapes_apart_bytes"] == found["crowd_fitting_count"] == found["chunked_short_bytes"] == 0
    assert found["bf16_fits_count"] < found["int8_fits_count"] < found["int4_fits_count"] < found["pairs_count"]
    assert control["int8_fits_count"] == found["bf16_fits_count"]
    assert control["t4_int8_left_tokens"] == 0 < found["t4_int8_left_tokens"]

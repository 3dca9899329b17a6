"""What fits on a card: sums agree with tensors, bad input is refused with its reason, nothing too large is admitted."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snippets.instruments.memory import peak_allocated_by, storage_bytes
from snippets.models import capacity, cards, shapes
from snippets.models.capacity import CapacityError, Setting, SettingError, admit, budget
from snippets.models.decoder import Decoder, KVCache, initialize
from snippets.models.quantized import quantize_groups_int4, quantize_rows_int8
from snippets.models.shapes import Geometry

ROOT = Path(__file__).resolve().parents[2]
ODD = Geometry("odd", 3, 40, 10, 5, 14, 12, 11, False, "none")
GEOMETRIES = {model.geometry.name: model.geometry for model in cards.MODELS.values()}


def record(**changes: Any) -> dict[str, Any]:
    """A plain setting that fits, changed."""
    data = cards.calculator_data()
    return data["models"]["llama-3-8b"] | {"card_bytes": data["cards"]["80"]["card_bytes"]} | changes


def held_by_tensors(geometry: Geometry, weights: str, group: int) -> int:
    """The second way: every tensor of our decoder on the meta device, through the project's own quantizers."""
    with torch.device("meta"):
        decoder = Decoder(dataclasses.replace(geometry, qk_norm=False)).to(torch.bfloat16)
    total = 0
    for name, weight in {n: p.detach() for n, p in decoder.named_parameters()}.items():
        vocabulary = name.startswith(("embed_tokens", "lm_head"))
        if weight.ndim < 2 or (vocabulary and weights != "int4_all") or weights == "bf16":
            total += weight.nbytes
        elif weights == "int8":
            total += quantize_rows_int8(weight).nbytes
        else:
            total += quantize_groups_int4(weight, group).nbytes
    return total


@pytest.mark.parametrize("weights", capacity.SCHEMES)
@pytest.mark.parametrize("name", [n for n, g in GEOMETRIES.items() if not g.qk_norm and "3.1" not in n])
def test_weights_are_what_the_tensors_hold(name: str, weights: str) -> None:
    geometry = GEOMETRIES[name]
    group = 64 if geometry.hidden % 128 else 128
    assert capacity.weights_bytes(geometry, weights, group) == held_by_tensors(geometry, weights, group)


@pytest.mark.parametrize("cache", [("bf16", torch.bfloat16), ("fp8", torch.float8_e4m3fn)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_token_is_what_a_cache_holds(name: str, cache: tuple[str, torch.dtype]) -> None:
    label, dtype = cache
    assert capacity.token_bytes(GEOMETRIES[name], label) == KVCache(GEOMETRIES[name], 1, 1, dtype, "meta").nbytes


def test_an_int8_cache_has_codes_and_a_scale_for_each_head_and_token() -> None:
    codes = torch.empty(2, ODD.layers, ODD.kv_heads, 1, ODD.head_dim, dtype=torch.int8)
    scales = torch.empty(2, ODD.layers, ODD.kv_heads, 1, dtype=torch.bfloat16)
    assert capacity.token_bytes(ODD, "int8") == codes.nbytes + scales.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [61, 127])
def test_activations_are_what_a_step_allocates_at_its_peak(tokens: int, dtype: torch.dtype) -> None:
    geometry = Geometry("wide", 3, 48, 6, 2, 8, 2053, 11, False, "none")  # wide enough to hide attention's scratch
    model = initialize(Decoder(geometry), seed=0).to(dtype).requires_grad_(False)
    cache, ids = KVCache(geometry, 1, tokens, dtype), torch.ones(1, tokens, dtype=torch.long)
    with torch.inference_mode():
        logits, peak = peak_allocated_by(lambda: model(ids, cache, last_only=True), device="cpu")
    assert peak == tokens * capacity.row_bytes(geometry, dtype.itemsize)
    assert capacity.logits_bytes(geometry) == logits[0, -1].to(torch.bfloat16).nbytes + logits[0, -1].float().nbytes


@pytest.mark.parametrize(("name", "count"), [("Llama-3-8B", 2), ("Llama-3-70B", 4), ("Llama-3.1-405B", 8)])
def test_the_shards_of_all_cards_hold_the_model_once_and_its_norms_each(name: str, count: int) -> None:
    geometry = GEOMETRIES[name]
    norms = 2 * shapes.parameters(geometry).norms
    one = capacity.weights_bytes(capacity.shard(geometry, count))
    assert count * (one - norms) == capacity.weights_bytes(geometry) - norms
    assert count * capacity.token_bytes(capacity.shard(geometry, count)) == capacity.token_bytes(geometry)


def test_published_count_of_the_largest_model() -> None:
    assert shapes.parameters(GEOMETRIES["Llama-3.1-405B"]).total == 405_853_388_800


def small_settings() -> st.SearchStrategy[Setting]:
    """Settings of an odd shape around the size where they cease to fit."""
    return st.builds(
        Setting,
        st.just(ODD),
        st.integers(1, 400_000),
        st.just(64),
        context_tokens=st.integers(1, 64),
        users=st.integers(1, 40),
        cards=st.sampled_from([1]),
        weights=st.sampled_from(["bf16", "int8"]),
        cache=st.sampled_from(list(capacity.CACHES)),
        step_tokens=st.integers(1, 64),
        runtime_bytes=st.integers(0, 10_000),
    )


@given(small_settings())
@settings(max_examples=150, deadline=None)
def test_most_users_fit_and_one_more_does_not(asked: Setting) -> None:
    found = budget(asked)
    if found.most_users:
        assert budget(dataclasses.replace(asked, users=found.most_users)).fits
    assert not budget(dataclasses.replace(asked, users=found.most_users + 1)).fits
    assert found.fits == (asked.users <= found.most_users) == (found.short_bytes == 0)
    assert found.needed_bytes == (
        found.weights_bytes + found.runtime_bytes + found.activations_bytes + found.cache_bytes
    )


@given(small_settings())
@settings(max_examples=150, deadline=None)
def test_left_tokens_fit_and_one_more_does_not(asked: Setting) -> None:
    found = budget(asked)
    rest = asked.card_bytes - (found.needed_bytes - found.cache_bytes)
    assert found.left_tokens == max(0, math.floor(rest / found.token_bytes))
    assert found.crossing_tokens * found.token_bytes > found.weights_bytes
    assert (found.crossing_tokens - 1) * found.token_bytes <= found.weights_bytes


@given(small_settings())
@settings(max_examples=150, deadline=None)
def test_what_is_refused_names_only_changes_that_fit(asked: Setting) -> None:
    found = budget(asked)
    try:
        assert admit(asked) == found
    except CapacityError as error:
        assert error.short_bytes == found.needed_bytes - asked.card_bytes > 0
        assert capacity.size(error.short_bytes) in str(error)
        for remedy in error.remedies:
            assert admit(dataclasses.replace(asked, **remedy.change)).fits
            assert remedy.label in str(error)
        for name in ("users", "context_tokens"):  # the largest of either, not just some
            for change in [r.change for r in error.remedies if name in r.change]:
                assert not budget(dataclasses.replace(asked, **{name: change[name] + 1})).fits
    else:
        assert found.fits


BAD = [
    ("layers", 0, "whole number from 1"),
    ("hidden", -8, "whole number from 1"),
    ("heads", math.nan, "whole number from 1"),
    ("kv_heads", 0, "whole number from 1"),
    ("kv_heads", 5, "32 heads do not divide by 5"),
    ("head_dim", 1.5, "whole number from 1"),
    ("ffn", None, "whole number from 1"),
    ("vocabulary", "128256", "whole number from 1"),
    ("card_bytes", 0, "whole number from 1"),
    ("card_bytes", math.inf, "whole number from 1"),
    ("longest_tokens", None, "whole number from 1"),
    ("runtime_bytes", -1, "whole number from 0"),
    ("users", 0, "whole number from 1"),
    ("users", True, "whole number from 1"),
    ("users", 10**9, "beyond what can be counted"),
    ("cards", 3, "32 heads do not divide by 3"),
    ("cards", 16, "8 kv_heads do not divide by 16"),
    ("step_tokens", 0, "whole number from 1"),
    ("context_tokens", 8193, "longest context is 8,192 tokens"),
    ("weights", "int3", "one of bf16, int8, int4, int4_all"),
    ("cache", "", "one of bf16, int8, fp8"),
]


@pytest.mark.parametrize(("name", "value", "reason"), BAD)
def test_bad_input_is_refused_with_its_reason(name: str, value: Any, reason: str) -> None:
    with pytest.raises(SettingError, match=reason) as refused:
        budget(capacity.setting(record(**{name: value})))
    assert refused.value.name == name


def test_a_group_must_divide_every_row() -> None:
    shape = cards.calculator_data()["models"]["smollm2-135m"]
    with pytest.raises(SettingError, match="576 columns of a matrix do not divide by 128") as refused:
        capacity.setting(record(**shape, weights="int4"))
    assert refused.value.name == "group"
    assert budget(capacity.setting(record(**shape, weights="int4", group=64))).fits


@pytest.mark.parametrize("count", [10**7, 10**7 + 5_368_709, 2**30 - 1, 2**30, 995 * 10**7, 79 * 2**30])
def test_sizes_are_rounded_to_the_nearest_in_both_units(count: int) -> None:
    shown = capacity.size(count)
    gib, gb = (float(part.split()[0].replace(",", "")) for part in shown.rstrip(")").split("("))
    assert abs(gib * 2**30 - count) <= 0.005 * 2**30 + 1e-3
    assert abs(gb * 10**9 - count) <= 0.005 * 10**9 + 1e-3


def test_few_bytes_are_told_as_they_are() -> None:
    assert capacity.size(14_080) == "14,080 bytes"
    assert capacity.size(9_999_999) == "9,999,999 bytes"


def test_cards_say_what_their_source_says() -> None:
    from measured import sources

    known = sources.load()
    for card in cards.CARDS.values():
        entry = known[card.source]
        assert (entry["number"], entry["unit"]) == (card.usable_gib, "GiB")
        assert abs(card.usable_bytes - card.usable_gib * 2**30) < 1
    assert not [m.geometry.source for m in cards.MODELS.values() if m.geometry.source not in known]


def test_the_pages_data_is_what_python_says() -> None:
    written = (ROOT / "docs" / "assets" / "capacity_data.js").read_text(encoding="utf-8")
    assert written == cards.calculator_script(), "python -m snippets.models.cards > docs/assets/capacity_data.js"


@pytest.mark.models
def test_a_real_model_holds_what_the_formula_says() -> None:
    from snippets.models import smollm2

    model = smollm2.decoder(torch.bfloat16, "cpu")
    assert storage_bytes(model) == capacity.weights_bytes(smollm2.GEOMETRY)

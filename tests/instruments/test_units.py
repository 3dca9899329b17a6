"""Units: names, texts and numbers agree, to the digit."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snippets.instruments.units import (
    SUFFIXES,
    UNITS,
    Quantity,
    UnitError,
    dimension_of,
    fits,
    parse_quantities,
    render,
)


def test_units_do_not_import_torch():
    imported = "snippets.instruments.units, snippets.instruments.datasheets"
    code = f"import sys, {imported}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        ("kv_token_bytes", "bytes"),
        ("read_bytes_per_second", "bytes_per_second"),
        ("tokens_per_second", "tokens_per_second"),  # a column may be named by its unit alone
        ("prompt_tokens", "tokens"),
        ("balance_flops_per_byte", "flops_per_byte"),
        ("peak_flops_per_second", "flops_per_second"),
        ("matmul_flops", "flops"),
        ("x_difference", "difference"),
        ("loss_nats", "nats"),
        ("noise_db", "db"),
        ("batch_count", "count"),
    ],
)
def test_a_name_ends_in_its_dimension(name, dimension):
    assert dimension_of(name) == dimension


@pytest.mark.parametrize("name", ["speed", "step_ms", "mybytes", "rate_per_second", "bytes_", "seconds_total"])
def test_a_name_without_a_unit_is_refused_and_told_the_units(name):
    with pytest.raises(UnitError, match=r"_bytes.*_seconds.*_tokens_per_second"):
        dimension_of(name)


@pytest.mark.parametrize(
    ("text", "number", "unit", "dimension", "base"),
    [
        ("131,072 bytes", 131072, "bytes", "bytes", 131072),
        ("5.70 GB", 5.7, "GB", "bytes", 5_700_000_000),
        ("4.1 GB", 4.1, "GB", "bytes", 4_100_000_000),  # in floats, 4.1 * 1e9 is less
        ("2 GiB", 2, "GiB", "bytes", 2 * 1024**3),
        ("1.5 MiB", 1.5, "MiB", "bytes", 1_572_864),
        ("8 kB", 8, "kB", "bytes", 8000),
        ("1 B", 1, "B", "bytes", 1),
        ("0.251×", 0.251, "×", "ratio", 0.251),
        ("6.5 %", 6.5, "%", "share", 0.065),
        ("6.5%", 6.5, "%", "share", 0.065),
        ("4.8 ms", 4.8, "ms", "seconds", 0.0048),
        ("80 µs", 80, "µs", "seconds", 80e-6),
        ("80 μs", 80, "μs", "seconds", 80e-6),
        ("12 minutes", 12, "minutes", "seconds", 720),
        ("3 s", 3, "s", "seconds", 3),
        ("1,234 tokens/s", 1234, "tokens/s", "tokens_per_second", 1234),
        ("30 tokens a second", 30, "tokens a second", "tokens_per_second", 30),
        ("30 tokens\n per  second", 30, "tokens per second", "tokens_per_second", 30),
        ("1 token", 1, "token", "tokens", 1),
        ("3.35 TB/s", 3.35, "TB/s", "bytes_per_second", 3.35e12),
        ("989 TFLOP/s", 989, "TFLOP/s", "flops_per_second", 989e12),
        ("15 GFLOP", 15, "GFLOP", "flops", 15e9),
        ("295 FLOP/B", 295, "FLOP/B", "flops_per_byte", 295),
        ("7 requests/s", 7, "requests/s", "requests_per_second", 7),
        ("4.125 bits", 4.125, "bits", "bits", 4.125),
        ("4-bit", 4, "bit", "bits", 4),
        ("0.29 nats", 0.29, "nats", "nats", 0.29),
        ("−3.5 dB", -3.5, "dB", "db", -3.5),
        ("8.03 billion parameters", 8.03, "billion", "count", 8.03e9),
        ("15 trillion tokens", 15, "trillion tokens", "tokens", 15e12),
        ("2³⁰ bytes", 2**30, "bytes", "bytes", 2**30),
        ("10⁻³ s", 1e-3, "s", "seconds", 1e-3),
        ("1.5 × 10⁻³ s", 1.5e-3, "s", "seconds", 1.5e-3),
        ("1e-6", 1e-6, None, None, 1e-6),
        ("32 layers", 32, None, None, 32),
        ("5\u00a0ms", 5, "ms", "seconds", 5e-3),
    ],
)
def test_a_text_states_one_quantity(text, number, unit, dimension, base):
    (found,) = parse_quantities(text)
    assert (found.number, found.unit, found.dimension) == (number, unit, dimension)
    assert found.base == base  # exactly: a claim may compare with ==
    assert text.startswith(found.text)


@pytest.mark.parametrize(
    "text", ["INT8 on Llama-3-8B", "Qwen2.5-7B", "H100", "torch 2.13.0", "v2.5", "top-5", "no number", ""]
)
def test_names_and_versions_are_no_numbers(text):
    assert parse_quantities(text) == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("4096×14336", [4096, 14336]),
        ("4096 × 14336", [4096, 14336]),
        ("4–6 %", [4, 6]),
        ("4-6 ms", [4, 6]),
        ("between 3 ms, 5.5 GB and 7", [3, 5.5, 7]),
        ("16 heads (-1)", [16, -1]),
        ("1,2345", [1, 2345]),
    ],
)
def test_every_number_is_found_in_order(text, numbers):
    assert [found.number for found in parse_quantities(text)] == numbers


def test_a_quantity_says_where_it_stands():
    text = "It takes 4.8 ms for 5.70 GB."
    assert [text[q.start : q.start + len(q.text)] for q in parse_quantities(text)] == ["4.8 ms", "5.70 GB"]
    assert parse_quantities("4.8 ms") == [Quantity(4.8, "4.8 ms", "ms", "seconds", 0.0048)]


@pytest.mark.parametrize(
    "text",
    ["8B model", "3 bytes/token", "5 GB per hour", "5 GB/min", "4096×14336", "7 sheep", "9 mst", "3 MBs"],
)
def test_what_only_begins_like_a_unit_is_none(text):
    assert parse_quantities(text)[0].unit is None


@pytest.mark.parametrize(
    ("name", "value", "spec", "text"),
    [
        ("kv_token_bytes", 131072.0, ",.0f bytes", "131,072 bytes"),
        ("kv_token_bytes", 131072, ",d bytes", "131,072 bytes"),
        ("kv_token_bytes", 131072, ".0f KiB", "128 KiB"),
        ("weights_bytes", 5.7e9, ".2f GB", "5.70 GB"),
        ("bytes_ratio", 0.2514, ".3f×", "0.251×"),
        ("bytes_ratio", 0.2514, ".1f %", "25.1 %"),
        ("used_share", 0.065, ".1f %", "6.5 %"),
        ("used_share", 0.065, ".3f", "0.065"),
        ("step_seconds", 0.0048, ".1f ms", "4.8 ms"),
        ("speed_tokens_per_second", 1234.4, ",.0f tokens/s", "1,234 tokens/s"),
        ("layers_count", 32.0, "d layers", "32 layers"),
        ("parameters_count", 8.03e9, ".2f billion parameters", "8.03 billion parameters"),
        ("trained_tokens", 15e12, ".0f trillion tokens", "15 trillion tokens"),
        ("x_difference", 1.25e-7, ".1e", "1.2e-07"),
        ("balance_flops_per_byte", 295.2, ".0f FLOP/B", "295 FLOP/B"),
    ],
)
def test_a_value_is_shown_in_its_unit(name, value, spec, text):
    assert render(name, value, spec) == text


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("kv_token_bytes", ".0f ms"),
        ("kv_token_bytes", ".0f bits"),
        ("kv_token_bytes", ".0f GB/s"),
        ("speed_ratio", ".1f layers"),
        ("step_seconds", ".1f %"),
        ("x_difference", ".1f %"),
        ("layers_count", ".0f bits"),
        ("layers_count", ".0f tokens"),
        ("layers_count", ".0f ×"),
        ("used_share", ".1%"),
        ("used_share", "percent"),
        ("speed", ".1f"),
    ],
)
def test_a_unit_that_does_not_fit_is_refused(name, spec):
    with pytest.raises(UnitError):
        render(name, 3.0, spec)


@pytest.mark.parametrize("value", [1.5, float("inf"), float("nan")])
def test_a_whole_number_format_hides_no_fraction(value):
    with pytest.raises(UnitError, match="no whole number"):
        render("layers_count", value, "d layers")


def test_only_dimensionless_values_may_stand_bare():
    bare = {dimension for dimension in SUFFIXES.values() if fits(None, dimension)}
    assert bare == {"ratio", "share", "count", "difference"}


def test_every_unit_belongs_to_a_dimension_that_a_name_can_state():
    assert {dimension for dimension, _ in UNITS.values()} <= set(SUFFIXES.values())
    assert set(SUFFIXES.values()) - {dimension for dimension, _ in UNITS.values()} == {"count", "difference"}


@given(
    st.sampled_from([unit for unit in UNITS if unit not in ("×",)]),
    st.decimals(min_value=0, max_value=10**6, places=3, allow_nan=False),
)
def test_what_is_shown_reads_back_as_the_value(unit, number):
    dimension, factor = UNITS[unit]
    value = float(number) * factor
    (read,) = parse_quantities(render(f"x_{dimension}", value, f",.3f {unit}"))
    assert (read.unit, read.dimension) == (unit, dimension)
    assert read.base == pytest.approx(value, rel=1e-12, abs=1e-9 * factor)

"""Values: what may be recorded, what a check of it accepts, and what it prints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from measured import values
from measured.values import (
    ClaimFailedError,
    ValueNameError,
    check_claim,
    check_series,
    check_value,
    record,
    series,
    series_digest,
    table,
)


@pytest.fixture(autouse=True)
def nothing_recorded() -> Iterator[None]:
    values.clear()
    yield
    values.clear()


def test_recorded_values_are_kept_in_the_type_of_their_class() -> None:
    record("D", a_bytes=12.0)
    record("T", tolerance=0.1, because="rounding", b_ratio=1)
    record("R", c_ratio=2)
    record("H", d_seconds=3)
    assert values.VALUES == {"a_bytes": 12, "b_ratio": 1.0, "c_ratio": 2.0, "d_seconds": 3.0}
    assert isinstance(values.VALUES["a_bytes"], int) and isinstance(values.VALUES["c_ratio"], float)


@pytest.mark.parametrize(
    ("value_class", "options", "said"),
    [
        ("X", {"a_bytes": 1}, "class 'X'"),
        ("D", {"a_bytes": 1.5}, "fraction"),
        ("D", {"a_size": 1}, "does not end in its unit"),
        ("H", {"a_bytes": math.nan}, "finite"),
        ("H", {"a_bytes": math.inf}, "finite"),
        ("T", {"a_ratio": 1}, "tolerance"),
        ("T", {"a_ratio": 1, "tolerance": 0.1}, "because"),
        ("D", {"a_bytes": 1, "tolerance": 0.1}, "only T"),
    ],
)
def test_refused_values(value_class: str, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        record(value_class, **options)
    assert values.VALUES == {}


def test_a_name_is_recorded_once() -> None:
    record("D", a_bytes=1)
    with pytest.raises(ValueNameError, match="a_bytes is recorded twice"):
        record("D", a_bytes=1)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "not empty"),
        ({"a_bytes": []}, "not empty"),
        ({"a_bytes": [1], "b": ["x", "y"]}, "one length"),
        ({"a": [1, 2]}, "does not end in its unit"),
        ({"a_bytes": [math.nan]}, "finite"),
    ],
)
def test_refused_series(columns: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        series("D", "s", **columns)
    assert values.SERIES == {}


def test_series_is_recorded_once_and_a_table_needs_it() -> None:
    series("D", "s", a_bytes=[1, 2], name=["x", "y"])
    with pytest.raises(ValueNameError, match="recorded twice"):
        series("D", "s", a_bytes=[1])
    table("s", columns={"name": "name", "a_bytes": "bytes"}, formats={"a_bytes": ".0f bytes"}, caption="c")
    with pytest.raises(KeyError):
        table("t", columns={"name": "name"}, caption="c")
    with pytest.raises(KeyError):
        table("s", columns={"other": "name"}, caption="c")
    with pytest.raises(ValueError, match="cannot be shown"):
        table("s", columns={"a_bytes": "time"}, formats={"a_bytes": ".0f ms"}, caption="c")


def test_check_of_a_d_value_is_exact_and_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    record("D", a_bytes=12)
    check_value("a_bytes", "D", 12)
    assert capsys.readouterr().out == "value a_bytes = 12\n"
    with pytest.raises(ClaimFailedError, match="a_bytes = 12, recorded 13"):
        check_value("a_bytes", "D", 13)
    assert capsys.readouterr().out == ""


def test_check_of_a_t_value_keeps_to_its_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    record("T", tolerance=0.1, because="rounding", a_ratio=1.0)
    check_value("a_ratio", "T", 1.09, tolerance=0.1)
    check_value("a_ratio", "T", 0.91, tolerance=0.1)
    assert capsys.readouterr().out == "value a_ratio\n" * 2
    for recorded in (1.11, 0.89):
        with pytest.raises(ClaimFailedError, match="farther than"):
            check_value("a_ratio", "T", recorded, tolerance=0.1)


def test_check_of_an_r_value_is_wide_and_only_on_one_class_of_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_machine_class", lambda: "mine")
    record("R", a_ratio=2.0)
    check_value("a_ratio", "R", 5.9, machine_class="mine")
    check_value("a_ratio", "R", 0.67, machine_class="mine")
    for recorded in (6.1, 0.66):
        with pytest.raises(ClaimFailedError, match="moved beyond"):
            check_value("a_ratio", "R", recorded, machine_class="mine")
        check_value("a_ratio", "R", recorded, machine_class="another")


def test_check_of_an_h_value_never_fails_on_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    record("H", a_seconds=2.0)
    check_value("a_seconds", "H", 1000.0)
    assert capsys.readouterr().out == "value a_seconds\n"


@pytest.mark.parametrize("value_class", ["D", "T", "R", "H"])
def test_a_value_that_this_run_did_not_record_fails_in_every_class(value_class: str) -> None:
    with pytest.raises(ClaimFailedError, match="not recorded in this run"):
        check_value("a_bytes", value_class, 1)


def test_series_digest_sees_everything_of_d_and_the_form_of_others() -> None:
    columns: dict[str, list] = {"a_bytes": [1, 2], "name": ["x", "y"]}
    other_number: dict[str, list] = {**columns, "a_bytes": [1, 3]}
    other_word: dict[str, list] = {**columns, "name": ["x", "z"]}
    longer: dict[str, list] = {"a_bytes": [1, 2, 3], "name": ["x", "y", "z"]}
    renamed: dict[str, list] = {"b_bytes": [1, 2], "name": ["x", "y"]}
    assert series_digest("D", columns) != series_digest("D", other_number)
    assert series_digest("R", columns) == series_digest("R", other_number)
    for value_class in ("D", "T", "R", "H"):
        digest = series_digest(value_class, columns)
        assert digest not in {series_digest(value_class, c) for c in (other_word, longer, renamed)}


def test_check_series() -> None:
    with pytest.raises(ClaimFailedError, match="not recorded"):
        check_series("s", "D", "0")
    series("D", "s", a_bytes=[1, 2])
    check_series("s", "D", series_digest("D", {"a_bytes": [1, 2]}))
    with pytest.raises(ClaimFailedError, match="differs"):
        check_series("s", "D", series_digest("D", {"a_bytes": [1, 3]}))


def test_check_claim_asserts_and_then_prints(capsys: pytest.CaptureFixture[str]) -> None:
    record("D", a_bytes=12)
    check_claim("one", "a_bytes == 12")
    assert capsys.readouterr().out == "claim one\n"
    with pytest.raises(ClaimFailedError, match=r"claim one fails: a_bytes == 13, but a_bytes = 12"):
        check_claim("one", "a_bytes == 13")
    with pytest.raises(ValueError, match="b_bytes is not recorded"):
        check_claim("one", "b_bytes == 13")
    assert capsys.readouterr().out == ""


def test_a_claim_without_its_capability_prints_its_line_and_leaves_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    side = tmp_path / "status.jsonl"
    monkeypatch.setenv("MEASURED_STATUS", str(side))
    monkeypatch.setattr(values, "_capabilities", lambda: frozenset({"vnni"}))
    record("D", a_bytes=12)
    check_claim("absent", "a_bytes == 13", needs="vnni amx-bf16")
    check_claim("present", "a_bytes == 12", needs="vnni")
    assert capsys.readouterr().out == "claim absent\nclaim present\n"
    with pytest.raises(ClaimFailedError):
        check_claim("present", "a_bytes == 13", needs="vnni")
    lines = [json.loads(line) for line in side.read_text(encoding="utf-8").splitlines()]
    assert [(s["claim"], s["status"], s["missing"]) for s in lines] == [
        ("absent", "not applicable", ["amx-bf16"]),
        ("present", "holds", []),
    ]
    assert lines[1]["values"] == {"a_bytes": 12}


def test_report_prints_claims_beside_fresh_numbers(mini, capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"box_bytes": 120, "counted_bytes": 121, "mean_ratio": 0.5, "speed_ratio": 1.0, "step_seconds": 1e-3}
    values.report("kv_cache/sample", measured)
    printed = capsys.readouterr().out
    rows = {row.split("│")[1].strip(): row for row in printed.splitlines() if "│" in row}
    assert "holds" in rows["120 bytes"] and "FAILS" in rows["counted alike"] and "FAILS" in rows["at least 2×"]
    assert "121" in rows["counted_bytes"] and "120" in rows["counted_bytes"]

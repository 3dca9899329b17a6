"""docs/machines.md: the same values side by side, from recordings of the present code alone."""

from __future__ import annotations

import re

import pytest

from measured import machine_list, recording

NAME = "kv_cache/sample"


def test_values_of_two_machines_are_compared_and_counts_are_not(mini) -> None:
    found = {each.name: each for each in machine_list.compared()}
    have = recording.primary(NAME)
    assert have is not None
    classes = have.classes
    assert found and {classes[name] for name in found} <= {"R", "H"}
    assert list(found["speed_ratio"].values) == ["here", "one-thread"]
    assert found["speed_ratio"].ratios == {"one-thread": 1.0}


def test_a_recording_of_earlier_code_is_left_out(mini) -> None:
    path = mini.root / "recordings" / "one-thread" / f"{NAME}.ipynb"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('tally.py": "', 'tally.py": "0'), encoding="utf-8")
    assert machine_list.compared() == []
    told = machine_list.machine_list("")
    assert "No value was recorded on two machines yet." in told and "1 of them with earlier code" in told


def test_the_page_shows_each_machines_own_number(mini) -> None:
    path = mini.root / "recordings" / "one-thread" / f"{NAME}.ipynb"
    text = path.read_text(encoding="utf-8")
    slower = text.replace('"speed_ratio": 4.0', '"speed_ratio": 2.0')
    assert slower != text
    path.write_text(slower, encoding="utf-8")
    (each,) = [one for one in machine_list.compared() if one.name == "speed_ratio"]
    assert each.ratios == {"one-thread": 0.5}
    told = machine_list.machine_list("")
    bars = re.findall(r'ma-bar-(\d)" style="width:([\d.]+)%"', told.split("<code>speed_ratio</code>")[1])
    assert [(number, float(width)) for number, width in bars[:2]] == [("1", 100.0), ("2", 50.0)]
    assert "speed_ratio: 0.50× on" in told


@pytest.mark.parametrize("machine", ["here", "one-thread"])
def test_every_machine_has_its_row(mini, machine: str) -> None:
    assert f"<code>{machine}</code>" in machine_list.machine_list("")

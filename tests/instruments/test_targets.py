"""Targets take their rates from the datasheets, answer to their drivers' names, and refuse formats they lack."""

from __future__ import annotations

import pytest

from snippets.instruments.datasheets import DATASHEETS, gpu_peak
from snippets.instruments.roofline import LAUNCH_SECONDS
from snippets.instruments.targets import FORMATS, TARGETS, Target, target_named

BY_HAND = Target(
    name="by hand",
    flops_per_second={"float32": 200.0},
    bytes_per_second=10.0,
    memory_bytes=1e9,
    host_bytes_per_second=None,
    launch_seconds=3.0,
    capabilities=frozenset(),
    source="by hand",
)


@pytest.mark.parametrize(
    ("flops", "moved", "launches", "seconds"), [(1000, 10, 0, 5.0), (1000, 70, 0, 7.0), (1000, 70, 3, 9.0)]
)
def test_seconds_are_those_of_the_roofline(flops: float, moved: float, launches: int, seconds: float) -> None:
    assert BY_HAND.seconds("float32", flops=flops, bytes=moved, launches=launches) == seconds


def test_a_format_without_units_is_refused_by_name() -> None:
    with pytest.raises(LookupError, match="by hand has no units for float8"):
        BY_HAND.peak("float8")
    with pytest.raises(LookupError, match="A100 SXM 80GB has no units for float8"):
        TARGETS["A100 SXM 80GB"].seconds("float8", flops=1)


@pytest.mark.parametrize("name", [name for name in TARGETS if name in DATASHEETS])
def test_a_gpu_has_the_rates_of_its_datasheet_and_no_others(name: str) -> None:
    target = TARGETS[name]
    declared = {form: peak for form in FORMATS if (peak := gpu_peak(name, form))}
    assert target.flops_per_second == {form: peak.flops_per_second for form, peak in declared.items()}
    assert {peak.bytes_per_second for peak in declared.values()} == {target.bytes_per_second}
    assert target.launch_seconds == LAUNCH_SECONDS and "fast-bf16" in target.capabilities
    assert ("cuda-fp8" in target.capabilities) == ("float8" in target.flops_per_second)


def test_three_gpus_and_one_of_apple_with_room_for_an_8b_model_each() -> None:
    assert [name for name in TARGETS if name not in DATASHEETS] == ["Apple M2 Ultra"] and len(TARGETS) == 4
    assert all(name == target.name and target.source for name, target in TARGETS.items())
    assert all(target.memory_bytes > 2 * 8.03e9 for target in TARGETS.values())
    host = {name: target.host_bytes_per_second for name, target in TARGETS.items()}
    assert host.pop("Apple M2 Ultra") is None, "its processor and GPU share one memory"
    assert all(link and link < TARGETS[name].bytes_per_second / 10 for name, link in host.items())


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Apple M2 Ultra", "Apple M2 Ultra"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Apple M2", None),
        ("AMD EPYC", None),
    ],
)
def test_a_driver_s_name_finds_its_target_and_no_relative_does(driver: str, name: str | None) -> None:
    found = target_named(driver)
    assert (found.name if found else None) == name

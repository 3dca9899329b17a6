"""What holds of every page's predictions: whole, plausible, quick, no slower on faster devices, registered as said."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import pytest

from measured import numbers, predictions, project
from measured.recorded_target import recorded_target
from snippets.instruments.targets import TARGETS, Target
from snippets.instruments.units import dimension_of

PAGES = [name for name in project.page_names() if predictions.predictable(name)]
MAY_BE_ZERO = {"share", "count", "difference", "tokens"}  # a share of what is not there, a count of what never happens
SECONDS = 60  # all pages for all targets, on a slow machine


@cache
def predicted(page: str, target: str) -> dict[str, float | str]:
    return predictions.compute(page, TARGETS[target])


def test_every_page_that_records_times_predicts_them_and_no_other_does() -> None:
    assert len(PAGES) > 20
    modules = {
        path.relative_to(predictions.path().parent).with_suffix("").as_posix()
        for topic in project.TOPICS
        for path in (predictions.path().parent / topic).glob("*.py")
        if path.stem != "__init__"
    }
    assert modules == set(PAGES)


@pytest.mark.models
@pytest.mark.parametrize("page", PAGES)
def test_each_value_has_a_number_or_a_reason_that_states_none(page: str) -> None:
    for target in TARGETS:
        found = predicted(page, target)  # names, finite numbers and non-empty reasons are asserted where it is computed
        for name, value in found.items():
            if isinstance(value, str):
                assert not numbers.quantities(value.replace(target, "")), f"{name} for {target}: {value}"
            else:
                assert value > 0 or dimension_of(name) in MAY_BE_ZERO, f"{name} = {value} for {target}"


def faster(target: Target) -> Target:
    """The same device with its rates doubled and its launches halved."""
    return replace(
        target,
        flops_per_second={form: 2 * rate for form, rate in target.flops_per_second.items()},
        bytes_per_second=2 * target.bytes_per_second,
        host_bytes_per_second=target.host_bytes_per_second and 2 * target.host_bytes_per_second,
        launch_seconds=target.launch_seconds / 2,
    )


@pytest.mark.models
@pytest.mark.parametrize("page", PAGES)
def test_no_time_is_longer_on_a_faster_device(page: str) -> None:
    for name, target in TARGETS.items():
        slow, fast = predicted(page, name), predictions.compute(page, faster(target))
        for value, seconds in slow.items():
            if value.endswith("_seconds") and not isinstance(seconds, str):
                then = fast[value]
                assert not isinstance(then, str) and then <= seconds * (1 + 1e-9), f"{value} on a faster {name}"


@pytest.mark.models
def test_all_pages_are_predicted_in_the_time_of_a_check() -> None:
    predicted(PAGES[0], "H100 SXM")  # torch is loaded
    started = time.perf_counter()
    for page in PAGES:
        predictions.compute(page, TARGETS["A100 SXM 80GB"])
    assert time.perf_counter() - started < SECONDS / len(TARGETS)


@pytest.mark.models
def test_what_is_registered_is_what_the_modules_say() -> None:
    outcome = predictions.predict(project.page_names())
    assert outcome.failed == []
    assert outcome.changed == [], "run `measured predict`"
    assert predictions.document(outcome.registry) == predictions.path().read_text(encoding="utf-8")


def test_the_cpu_that_recorded_stands_between_nothing_and_a_gpu() -> None:
    here = recorded_target()
    assert here is not None and "cpu" in here.capabilities
    rates = here.flops_per_second
    assert rates["float32"] < rates["bfloat16"] < rates["int8"] < TARGETS["RTX 4090"].flops_per_second["int8"]
    assert 1e9 < here.bytes_per_second < min(target.bytes_per_second for target in TARGETS.values())
    with pytest.raises(LookupError, match="float8"):
        here.peak("float8")

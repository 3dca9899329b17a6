"""Predictions: what R and H values should come to on devices that are not at hand, registered before a recording.

`snippets/predictions/<page>.py` computes them from a target's peaks; `registered.json` beside it keeps each number with
the day on which it was first said. A number that a recording can already be held against never changes.
"""

from __future__ import annotations

import datetime
import importlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measured import project, recording
from measured.page import read_page
from measured.recorded_target import recorded_target
from measured.recording import Recording

if TYPE_CHECKING:
    from snippets.instruments.targets import Target

CLASSES = "RH"  # what another device may show otherwise
LATE = "a recording from such a device came before a prediction"
_DEPTH = 4  # table, page, value, target: what stands below is one line
SAME = 1e-9  # relative: the last digits differ between mathematical libraries


class PredictionError(ValueError):
    """A page's predictions cannot be computed, or one may not change; the message says which and how to mend it."""


@dataclass(frozen=True)
class Registered:
    """What is said of a value on a target: a number in its base unit, or why there is none, and when it was said."""

    registered: str
    version: str
    predicted: float | None = None
    reason: str = ""

    def says(self, found: float | str) -> bool:
        """Whether a page's module says the same."""
        return found == self.reason if isinstance(found, str) else _same(found, self.predicted)


@dataclass
class Registry:
    """What is said by page, value and target; and by the same functions the values of the CPU that recorded."""

    registered: dict[str, dict[str, dict[str, Registered]]] = field(default_factory=dict)
    hindcast: dict[str, dict[str, float | str]] = field(default_factory=dict)


def path() -> Path:
    """Where predictions are registered."""
    return project.root() / "snippets" / "predictions" / "registered.json"


def module_path(page: str) -> Path:
    """Where a page's predictions are computed."""
    return project.root() / "snippets" / "predictions" / f"{page}.py"


def load() -> Registry:
    """What is registered; nothing where there is no file.

    Raises:
        PredictionError: The file cannot be read.
    """
    where = path()
    return _load(where, where.stat().st_mtime_ns) if where.is_file() else Registry()


@cache
def _load(where: Path, _mtime: int) -> Registry:
    try:
        found = json.loads(where.read_text(encoding="utf-8"))
        return Registry(
            {
                page: {
                    value: {target: Registered(**said) for target, said in by_target.items()}
                    for value, by_target in values.items()
                }
                for page, values in found["registered"].items()
            },
            found["hindcast"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        shown = where.relative_to(project.root()).as_posix()
        raise PredictionError(f"{shown} cannot be read ({error}): restore it from the history") from None


def predictable(page: str) -> list[str]:
    """Names of the page's recorded R and H values, in the order in which it records them."""
    have = recording.primary(page)
    return [name for name, value_class in have.classes.items() if value_class in CLASSES] if have else []


def compute(page: str, target: Target) -> dict[str, float | str]:
    """What the page's module predicts for a target, by the page's own names.

    Raises:
        PredictionError: There is no module, it fails, or its answer is not one number or reason for each value.
    """
    where = module_path(page).relative_to(project.root()).as_posix()
    if not module_path(page).is_file():
        raise PredictionError(f"docs/{page}.md records R or H values and there is no {where}: write it")
    try:
        found = importlib.import_module(f"snippets.predictions.{page.replace('/', '.')}").predict(target)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever a module raises is told with where it stands
        raise PredictionError(f"{where}: predict({target.name}): {type(error).__name__}: {error}") from error
    wanted = predictable(page)
    if found.keys() != set(wanted):
        lacking, other = sorted(set(wanted) - found.keys()), sorted(found.keys() - set(wanted))
        told = [f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has {', '.join(other)} too much"] * bool(other)
        raise PredictionError(f"{where}: predict({target.name}) {' and '.join(told)}: one entry for each R and H value")
    for name, value in found.items():
        if not (value.strip() if isinstance(value, str) else math.isfinite(value) and value >= 0):
            what = f"{name} = {value!r} for {target.name}"
            raise PredictionError(f"{where}: {what} is neither a number that can be measured nor a reason")
    return {name: found[name] if isinstance(found[name], str) else float(found[name]) for name in wanted}


@dataclass
class Outcome:
    """What `predict` came to: the new registry, what changed in it, and pages that it could not do."""

    registry: Registry
    changed: list[str]
    failed: list[str]


def predict(pages: Iterable[str], today: datetime.date | None = None) -> Outcome:
    """The registry with these pages computed anew; an unchanged number keeps its day. Writes nothing.

    Raises:
        PredictionError: A number would change that a recording exists for.
    """
    from snippets.instruments.targets import TARGETS

    old, here = load(), recorded_target()
    outcome = Outcome(Registry(dict(old.registered), dict(old.hindcast)), [], [])
    new = outcome.registry
    stamp = {
        "registered": (today or datetime.date.today()).isoformat(),
        "version": str(project.metadata(project.root())["version"]),
    }
    for page in pages:
        names, before = predictable(page), old.registered.get(page, {})
        try:
            found = {target: compute(page, TARGETS[target]) for target in TARGETS if names}
            told = compute(page, here) if here and names else {}
        except PredictionError as error:
            outcome.failed.append(str(error))
            continue
        new.registered[page] = {
            name: {
                target: _settled(page, name, target, before.get(name, {}).get(target), values[name], stamp)
                for target, values in found.items()
            }
            for name in names
        }
        new.hindcast[page] = _kept(old.hindcast.get(page, {}), told)
        if new.registered[page] != before or new.hindcast[page] != old.hindcast.get(page, {}):
            outcome.changed.append(page)
    for page in set(new.registered) - set(project.page_names()):
        del new.registered[page]
        new.hindcast.pop(page, None)
        outcome.changed.append(page)
    return outcome


def _settled(
    page: str, name: str, target: str, old: Registered | None, new: float | str, stamp: Mapping[str, str]
) -> Registered:
    """What stands registered: the old entry where it says the same, never a new number for what was recorded."""
    recorded = recordings_from(page, target)
    if old and (old.says(new) or (old.reason == LATE and recorded)):
        return old
    if recorded and old and not (old.predicted is None and isinstance(new, str)):
        said = f"“{old.reason}”" if old.predicted is None else f"{old.predicted:.6g}"
        raise PredictionError(
            f"{page}: {name} on {target} was registered as {said} on {old.registered} and recorded there on "
            f"{recorded[0].about['recorded']}; {module_path(page).name} now says {new!r}. "
            "A recorded value's prediction does not change: take the change to the module back"
        )
    if recorded:
        new = LATE
    number, reason = (None, new) if isinstance(new, str) else (new, "")
    return Registered(predicted=number, reason=reason, **stamp)


def _kept(old: Mapping[str, float | str], new: Mapping[str, float | str]) -> dict[str, float | str]:
    """The new values, with the old one's digits where they are the same number."""
    return {name: old[name] if name in old and _same(value, old[name]) else value for name, value in new.items()}


def _same(one: float | str, other: float | str | None) -> bool:
    if isinstance(one, str) or isinstance(other, str) or other is None:
        return one == other
    return math.isclose(one, other, rel_tol=SAME)


def write(registry: Registry) -> None:
    """Put a registry in place of the file, whole; pages in the site's order, a line for each number."""
    project.write_atomically(path(), document(registry))


def document(registry: Registry) -> str:
    """The registry as text, the same for the same content."""

    def block(entries: Mapping[str, Any], depth: int) -> str:
        if depth == 0 or not isinstance(entries, dict):
            said = _said(entries) if isinstance(entries, Registered) else entries
            return json.dumps(said, ensure_ascii=False)
        pad = " " * (_DEPTH - depth + 1)
        rows = [f"{pad}{json.dumps(key)}: {block(each, depth - 1)}" for key, each in entries.items()]
        return "{\n" + ",\n".join(rows) + f"\n{pad[1:]}}}" if rows else "{}"

    pages = [page for page in project.page_names() if registry.registered.get(page)]
    tables = {
        "registered": {page: registry.registered[page] for page in pages},
        "hindcast": {page: registry.hindcast[page] for page in pages if registry.hindcast.get(page)},
    }
    return block(tables, _DEPTH) + "\n"


def _said(one: Registered) -> dict[str, Any]:
    """A number or a reason, whichever there is, first; then since when."""
    said = {"reason": one.reason} if one.predicted is None else {"predicted": one.predicted}
    return {**said, "registered": one.registered, "version": one.version}


def target_of(machine: Mapping[str, Any]) -> Target | None:
    """The target that a machine is, as a recording or `measured run` describes it; None for every other."""
    from snippets.instruments.targets import target_named

    return None if machine.get("kind") == "cpu" else target_named(str(machine.get("name", "")))


def recordings_from(page: str, target: str) -> list[Recording]:
    """The page's fresh recordings from machines that are this target."""
    have = recording.recordings(page) if page in project.page_names() else []
    return [
        each
        for each in have
        if (found := target_of(each.about.get("machine", {})))
        and found.name == target
        and not recording.staleness(read_page(page), each)
    ]


def problems(page: str) -> Iterator[tuple[int, str, str]]:
    """What a page lacks for its R and H values to be predicted, without computing anything: `(line, problem, mend)`."""
    from snippets.instruments.targets import TARGETS

    wanted, have = predictable(page), load().registered.get(page, {})
    redo = f"run `measured predict {page}`"
    if not module_path(page).is_file():
        redo = f"write {module_path(page).relative_to(project.root()).as_posix()}, then {redo}"
    if lacking := [name for name in wanted if have.get(name, {}).keys() != TARGETS.keys()]:
        yield 1, f"no registered prediction of {', '.join(lacking)}", redo
    if other := [name for name in have if name not in wanted]:
        yield 1, f"predictions of {', '.join(other)}, which the page does not record", f"run `measured predict {page}`"
    for target in TARGETS:
        for each in recordings_from(page, target):
            day = str(each.about["recorded"])
            late = [n for n, said in have.items() if target in said and _is_late(said[target], day)]
            if late:
                what = f"predictions of {', '.join(late)} for {target} are dated after the recording on {each.machine}"
                yield 1, what, "a prediction comes first: restore registered.json from the history"


def _is_late(said: Registered, recorded: str) -> bool:
    return said.predicted is not None and said.registered > recorded


def numbers_for(machine: Mapping[str, Any], page: str) -> tuple[str, dict[str, float]]:
    """The target that a machine is held against, a CPU against the one that recorded, and the page's numbers there."""
    registry, target = load(), target_of(machine)
    if target:
        said = registry.registered.get(page, {})
        found = {n: by[target.name].predicted for n, by in said.items() if target.name in by}
        return target.name, {name: number for name, number in found.items() if number is not None}
    if machine.get("kind") != "cpu":
        return "", {}
    told = registry.hindcast.get(page, {})
    have = recording.primary(page)
    return have.label if have else "", {name: v for name, v in told.items() if not isinstance(v, str)}


def factor(predicted: float, measured: float) -> float | None:
    """How far off a prediction is either way, from one upwards; None where no factor leads from one to the other."""
    return max(predicted / measured, measured / predicted) if predicted > 0 and measured > 0 else None


@dataclass(frozen=True)
class Compared:
    """One value predicted and measured; `factor` is None where none leads from one to the other."""

    page: str
    name: str
    predicted: float
    measured: float
    registered: str = ""

    @property
    def factor(self) -> float | None:
        return factor(self.predicted, self.measured)


def compared(page: str, each: Recording, target: str) -> list[Compared]:
    """A page's predictions for a target beside a recording from one."""
    said = load().registered.get(page, {})
    return [
        Compared(page, name, one.predicted, float(each.values[name]), one.registered)
        for name, by_target in said.items()
        if name in each.values and (one := by_target.get(target)) and one.predicted is not None
    ]


def hindcasts(pages: Sequence[str]) -> list[Compared]:
    """Values of the CPU that recorded, by the same functions, beside what it recorded."""
    told = load().hindcast
    return [
        Compared(page, name, predicted, float(have.values[name]))
        for page in pages
        if (have := recording.primary(page))
        for name, predicted in told.get(page, {}).items()
        if not isinstance(predicted, str) and name in have.values
    ]

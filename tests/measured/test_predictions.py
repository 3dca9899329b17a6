"""A registered number keeps its day, never changes once it was recorded, and stands beside what was recorded."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import nbformat
import pytest

from measured import checks, predictions, pulled, recording, run, show_predictions, weave
from measured.page import read_page
from measured.predictions import LATE, PredictionError, Registered, Registry
from snippets.instruments.targets import TARGETS

NAME = "kv_cache/sample"
H100 = {"kind": "accelerator", "name": "NVIDIA H100 80GB HBM3", "capabilities": ["fast-bf16"]}
DAY = datetime.date(2030, 1, 2)
FIRST = json.loads((Path(__file__).parent / "sample/snippets/predictions/registered.json").read_text(encoding="utf-8"))
REGISTERED = FIRST["registered"][NAME]["speed_ratio"]["H100 SXM"]["registered"]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch):
    """`says(speed_ratio=…)`: what the sample's module predicts for each target, in place of its own answer."""

    def set_to(**values: float | str) -> None:
        answer = {"speed_ratio": 4.0, "step_seconds": "a pause that nobody counts", **values}
        monkeypatch.setattr(predictions, "compute", lambda page, target: dict(answer))

    set_to()
    return set_to


def record_on(mini, machine: dict, name: str = "h100", recorded: str = "2031-05-06") -> None:
    """The primary recording again, as if another machine had made it on that day."""
    book = mini.book()
    about = book.metadata["measured"]
    about["machine"] = {**about["machine"], **machine, "id": name, "label": f"This {name}"}
    about["recorded"] = recorded
    path = mini.root / "recordings" / name / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(nbformat.writes(book) + "\n", encoding="utf-8")


def recorded_values() -> dict[str, float]:
    have = recording.primary(NAME)
    assert have is not None
    return have.values


def registered(value: str, target: str = "H100 SXM") -> Registered:
    return predictions.load().registered[NAME][value][target]


def test_an_unchanged_number_keeps_its_day_and_a_changed_one_gets_todays(mini, says) -> None:
    outcome = predictions.predict([NAME], DAY)
    assert (outcome.changed, outcome.failed) == ([], [])
    assert predictions.document(outcome.registry) == predictions.path().read_text(encoding="utf-8")
    says(speed_ratio=4.0 * (1 + 1e-12))  # another library's last digit
    assert predictions.predict([NAME], DAY).changed == []
    says(speed_ratio=5.0)
    outcome = predictions.predict([NAME], DAY)
    assert outcome.changed == [NAME] and registered("speed_ratio").registered == REGISTERED, "nothing is written yet"
    predictions.write(outcome.registry)
    assert registered("speed_ratio") == Registered("2030-01-02", "0.1.0", predicted=5.0)
    assert registered("step_seconds").registered == REGISTERED


def test_a_recorded_number_is_never_changed(mini, says) -> None:
    record_on(mini, H100)
    before = predictions.path().read_text(encoding="utf-8")
    for new in (5.0, "on second thought nobody knows"):
        says(speed_ratio=new)
        with pytest.raises(PredictionError, match=rf"{NAME}: speed_ratio on H100 SXM .* as 4 on .*2031-05-06"):
            predictions.predict([NAME], DAY)
    says(step_seconds=1.0)
    with pytest.raises(PredictionError, match="step_seconds on H100 SXM was registered as “a pause"):
        predictions.predict([NAME], DAY)
    says(step_seconds="a pause of which nobody keeps count")  # a reason in better words is no prediction
    assert predictions.predict([NAME], DAY).changed == [NAME]
    assert predictions.path().read_text(encoding="utf-8") == before


def test_a_recording_of_other_code_binds_nobody(mini, says) -> None:
    record_on(mini, H100)
    mini.replace("return 4.0", "return 6.0", mini.root / "snippets" / "models" / "tally.py")
    says(speed_ratio=5.0)
    assert predictions.predict([NAME], DAY).changed == [NAME]


def test_what_was_recorded_first_is_no_longer_predicted(mini, says) -> None:
    predictions.path().unlink()
    record_on(mini, H100)
    predictions.write(predictions.predict([NAME], DAY).registry)
    assert registered("speed_ratio") == Registered("2030-01-02", "0.1.0", reason=LATE)
    assert registered("speed_ratio", "RTX 4090").predicted == 4.0
    assert predictions.predict([NAME], DAY).changed == []
    assert [p for p in mini.problems() if "predict" in p] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"speed_ratio": 4.0}', "lacks step_seconds"),
        ('{"speed_ratio": 4.0, "step_seconds": "none", "box_bytes": 1.0}', "has box_bytes too much"),
        ('{"speed_ratio": float("nan"), "step_seconds": "none"}', "speed_ratio = nan"),
        ('{"speed_ratio": -1.0, "step_seconds": "none"}', "speed_ratio = -1.0"),
        ('{"speed_ratio": 4.0, "step_seconds": " "}', "step_seconds = ' '"),
        ("1 // 0", "ZeroDivisionError"),
    ],
)
def test_a_module_that_answers_badly_is_named(mini, body: str, says: str) -> None:
    module = predictions.module_path(NAME)
    module.write_text(f'"""Nothing."""\n\n\ndef predict(target):\n    return {body}\n', encoding="utf-8")
    before = predictions.path().read_text(encoding="utf-8")
    done = mini.run("predict")
    assert done.returncode == 1 and f"snippets/predictions/{NAME}.py: " in done.stderr and says in done.stderr
    assert predictions.path().read_text(encoding="utf-8") == before, "the page's numbers stay as they were"


def test_the_command_registers_and_its_check_says_what_to_run(mini) -> None:
    assert mini.run("predict", "--check").returncode == 0
    mini.replace("(1, 4)", "(1, 3)", predictions.module_path(NAME))
    done = mini.run("predict", "--check")
    assert done.returncode == 1 and f"mend: run `measured predict {NAME}`" in done.stdout
    assert registered("speed_ratio").predicted == 4.0
    assert mini.run("predict", NAME).returncode == 0 and registered("speed_ratio").predicted == 3.0
    predictions.module_path(NAME).unlink()
    done = mini.run("predict", "--check")
    assert done.returncode == 1 and f"there is no snippets/predictions/{NAME}.py: write it" in done.stderr


def test_the_static_check_wants_each_value_on_each_target(mini) -> None:
    assert [p for p in mini.problems() if "predict" in p] == []
    have = json.loads(predictions.path().read_text(encoding="utf-8"))
    del have["registered"][NAME]["speed_ratio"]["RTX 4090"]
    have["registered"][NAME]["gone_ratio"] = have["registered"][NAME]["step_seconds"]
    predictions.path().write_text(json.dumps(have), encoding="utf-8")
    told = "\n".join(mini.problems())
    assert "no registered prediction of speed_ratio\n" in told and f"run `measured predict {NAME}`" in told
    assert "predictions of gone_ratio, which the page does not record" in told
    predictions.path().unlink()
    predictions.module_path(NAME).unlink()
    told = "\n".join(mini.problems())
    assert "no registered prediction of speed_ratio, step_seconds" in told
    assert f"mend: write snippets/predictions/{NAME}.py, then run" in told


def test_a_prediction_dated_after_its_recording_is_none(mini) -> None:
    record_on(mini, H100, recorded=REGISTERED)
    assert [p for p in mini.problems() if "dated" in p] == [], "on the same day it came first"
    record_on(mini, H100, "earlier", recorded="2020-01-01")
    assert [p for p in mini.problems() if "predictions of speed_ratio for H100 SXM are dated after" in p]


def test_a_file_that_cannot_be_read_says_what_to_do(mini) -> None:
    for text in (
        "[]",
        "{",
        '{"registered": {"kv_cache/sample": {"a_ratio": {"H100 SXM": {"odd": 1}}}}, "hindcast": {}}',
    ):
        predictions.path().write_text(text, encoding="utf-8")
        predictions._load.cache_clear()
        with pytest.raises(PredictionError, match=r"snippets/predictions/registered\.json .*restore it"):
            predictions.load()


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (H100, "H100 SXM"),
        ({"kind": "mps", "name": "Apple M2 Ultra"}, "Apple M2 Ultra"),
        ({"kind": "cpu", "name": "Apple M2 Ultra"}, None),
        ({"kind": "accelerator", "name": "NVIDIA L4"}, None),
        ({}, None),
    ],
)
def test_a_machine_is_the_target_that_its_device_is(machine: dict, name: str | None) -> None:
    found = predictions.target_of(machine)
    assert (found.name if found else None) == name


def test_a_recording_from_a_target_puts_both_numbers_and_the_error_on_the_page(mini, says) -> None:
    page, measured = read_page(NAME), recorded_values()["speed_ratio"]
    says(speed_ratio=measured * 1.25)
    predictions.write(predictions.predict([NAME], DAY).registry)
    assert show_predictions.predicted_and_measured(page, recording.recordings(NAME)) == ""
    record_on(mini, H100)
    shown = show_predictions.predicted_and_measured(page, recording.recordings(NAME))
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", shown)]
    assert cells == [
        *("value", "predicted", "measured", "off by", "registered"),
        *("speed_ratio", f"{measured * 1.25:.3g}×", f"{measured:.3g}×", "1.25×", "2030-01-02"),
    ]
    assert "Predicted for H100 SXM and measured on This h100, 2031-05-06" in shown
    mini.replace("return 4.0", "return 6.0", mini.root / "snippets" / "models" / "tally.py")
    assert show_predictions.predicted_and_measured(page, recording.recordings(NAME)) == "", "of other code"


def test_a_page_s_foot_has_the_comparison_and_leads_to_all_predictions(mini) -> None:
    from markdown import Markdown

    record_on(mini, H100)
    (mini.root / "docs" / "predictions.md").write_text("# All\n", encoding="utf-8")
    md = Markdown(extensions=["attr_list", "admonition", "md_in_html", "pymdownx.superfences", weave.makeExtension()])
    shown = md.convert(read_page(NAME).source)
    assert shown.index('id="predicted-and-measured"') < shown.index('id="recorded-on"')
    assert f'href="../predictions.html#{show_predictions.anchor(NAME)}"' in shown


def test_a_factor_is_the_same_either_way_and_none_leads_across_nothing() -> None:
    assert predictions.factor(2.0, 4.0) == predictions.factor(4.0, 2.0) == 2.0
    assert predictions.factor(0.0, 4.0) is None and predictions.factor(1.0, -1.0) is None


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("step_seconds", 0.0123, "12.3 ms"),
        ("step_seconds", 4e-6, "4 µs"),
        ("read_bytes_per_second", 3.35e12, "3.35 TB/s"),
        ("cache_bytes", 512.0, "512 bytes"),
        ("speed_ratio", 1234.5, "1,234×"),
        ("within_share", 0.684, "68.4 %"),
        ("calls_count", 44.0, "44"),
        ("long_tokens_per_second", 0.25, "0.25 tokens/s"),
    ],
)
def test_numbers_are_shown_in_a_unit_that_fits(name: str, value: float, text: str) -> None:
    assert show_predictions.number(name, value).replace("\N{NO-BREAK SPACE}", " ") == text


def test_every_part_can_be_pulled_and_no_other(mini) -> None:
    told = pulled.pull("<!-- pull predictions pages -->")
    assert "How big is a box?" in told and "<td>4×</td>" in told and "a pause that nobody counts" in told
    assert "speed_ratio &gt;= 2" in told and told.count("<td>holds</td>") == len(TARGETS)
    assert all(
        target.source.split(",")[0] in pulled.pull("<!-- pull predictions targets -->") for target in TARGETS.values()
    )
    assert "Nothing is recorded yet" in pulled.pull("<!-- pull predictions test -->")
    with pytest.raises(ValueError, match=r"no part 'all'.*targets, pages, test"):
        pulled.pull("<!-- pull predictions all -->")


def test_a_bound_is_predicted_to_fail_where_it_would(mini, says) -> None:
    says(speed_ratio=1.5)
    predictions.write(predictions.predict([NAME], DAY).registry)
    assert show_predictions.pages().count("<strong>fails</strong>") == len(TARGETS)


def test_the_roofline_s_test_counts_errors_and_leaves_inputs_out(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = recorded_values()
    told: dict[str, float | str] = {
        "speed_ratio": 3 * recorded["speed_ratio"],
        "step_seconds": recorded["step_seconds"] / 1.1,
    }
    predictions.write(Registry(predictions.load().registered, {NAME: told}))
    shown = re.sub(r"<[^>]+>", "", show_predictions.tested()).replace("\N{NO-BREAK SPACE}", " ")
    assert "2 values are predicted" in shown and "at most 2.05×" in shown and "50 % lie within" in shown
    assert "Of 1 times, 1 took longer" in shown and shown.index("speed_ratio") < shown.index(
        "3×", shown.index("of How")
    )
    monkeypatch.setattr("measured.recorded_target.INPUTS", ((NAME, "speed_ratio"),))
    assert "1 values are predicted" in show_predictions.tested() and "1 inputs" in show_predictions.tested()


def test_a_run_is_held_against_the_target_that_the_machine_is(mini) -> None:
    assert predictions.numbers_for(H100, NAME) == ("H100 SXM", {"speed_ratio": 4.0})
    assert predictions.numbers_for({"kind": "accelerator", "name": "NVIDIA L4"}, NAME) == ("", {})
    predictions.write(Registry(predictions.load().registered, {NAME: {"speed_ratio": 2.5, "step_seconds": "no"}}))
    assert predictions.numbers_for({"kind": "cpu"}, NAME) == ("This machine", {"speed_ratio": 2.5})
    claim = next(c for c in read_page(NAME).claims if c.id == "box-speed")
    judged = run.judge(claim, {"speed_ratio": 4.0}, {"speed_ratio": 4.1}, [], {"speed_ratio": 2.5})
    assert (judged.here, judged.recorded, judged.predicted) == (
        {"speed_ratio": 4.0}, {"speed_ratio": 4.1}, {"speed_ratio": 2.5},
    )  # fmt: skip


def test_docstrings_of_predictions_are_read_for_naked_numbers(mini) -> None:
    module = predictions.module_path(NAME)
    mini.replace("Counted is a box,", "Counted are 15 boxes,", module)
    assert any("naked number “15”" in str(p) for p in checks.check_pages([NAME]))

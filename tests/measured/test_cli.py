"""The command line: each command has an example and a line in README, and says bad input plainly."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from measured import checks, rerun
from measured.cli import app
from measured.page import read_page
from measured.rerun import Rerun
from measured.values import CLASSES

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
NAME = "kv_cache/sample"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_commands_are_those_that_the_design_names() -> None:
    wanted = {"build", "check", "fix", "list", "models", "nbval", "new", "notebook", "prepare", "record"}
    assert wanted | {"doctor", "run"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_an_example(name: str) -> None:
    shown = run(name, "--help")
    assert shown.exit_code == 0 and re.search(rf"Examples?: measured {name}\b", shown.output), shown.output


def test_help_lists_every_command_and_no_argument_shows_it() -> None:
    shown = run("--help").output
    assert all(re.search(rf"\b{name}\b", shown) for name in COMMANDS) and "Example: measured check" in shown
    assert "Usage" in run().output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_in_readme(name: str) -> None:
    assert re.search(rf"`measured {name}\b", (ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "kv_cache/sampel"], "no page 'kv_cache/sampel'; nearest: kv_cache/sample"),
        (["record", "kv_cache/sampel"], "no page 'kv_cache/sampel'; nearest: kv_cache/sample"),
        (["fix", "kv_cache/sampel"], "no page 'kv_cache/sampel'; nearest: kv_cache/sample"),
        (["nbval", "kv_cache/sampel"], "no page 'kv_cache/sampel'; nearest: kv_cache/sample"),
        (["notebook", "kv_cache/sampel"], "no page 'kv_cache/sampel'; nearest: kv_cache/sample"),
        (["check", "nothing-like-it"], "no page 'nothing-like-it'; nearest: "),
        (["new", "kv_cach", "x", "Why?"], "no topic 'kv_cach'; nearest: kv_cache"),
        (["new", "kv_cache", "Bad-Slug", "Why?"], "use lower_snake_case"),
        (["new", "kv_cache", "x", "Why"], "is no question"),
        (["new", "kv_cache", "sample", "Why?"], "exists already"),
        (["record", "--machine", "one-thred"], "no machine 'one-thred'; nearest: one-thread"),
        (["notebook", "lost.ipynb"], "lost.ipynb"),
    ],
)
def test_bad_input_exits_two_with_the_nearest_names(mini, arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and said in done.output, (done.exit_code, done.output)
    assert "Traceback" not in done.output


def test_a_page_may_be_named_as_its_file_or_its_topic(mini) -> None:
    for name in (NAME, f"docs/{NAME}.md", f"{NAME}.md"):
        done = run("check", name)
        assert done.exit_code == 0 and "no problem on 1 pages" in done.output
    assert "no problem on 1 pages" in run("check", "kv_cache").output


def test_outside_a_clone_it_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEASURED_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("measured.project.__file__", str(tmp_path / "a" / "b" / "project.py"))
    done = run("check")
    assert done.exit_code == 2 and "run inside a clone, or set MEASURED_ROOT" in done.output


def test_check_prints_problems_and_exits_one(mini) -> None:
    line = mini.append("Takes 5 GB.")
    done = run("check", NAME)
    assert done.exit_code == 1 and f"docs/{NAME}.md:{line}: naked number “5 GB”\n    mend: " in done.output
    assert "1 problem on 1 page" in done.output or "1 problems on 1 pages" in done.output
    everything = run("check")
    assert everything.exit_code == 1 and "naked number" in everything.output


def test_fix_prints_what_it_rewrote(mini) -> None:
    line = mini.replace('**120 bytes**{ .m data-m="box', '**1 byte**{ .m data-m="box')
    done = run("fix", NAME)
    assert done.exit_code == 0 and f"docs/{NAME}.md:{line}: “1 byte” → “120 bytes”" in done.output
    mini.append('It is **1 byte**{ .m data-m="lost_bytes:.0f bytes" }.')
    failed = run("fix", NAME)
    assert failed.exit_code == 1 and "lost_bytes is not recorded" in failed.output


def test_list_shows_pages_claims_and_recordings(mini) -> None:
    shown = run("list").output
    row = next(r for r in shown.splitlines() if NAME in r)
    date = mini.book().metadata["measured"]["recorded"]
    by_class = Counter(claim.value_class for claim in read_page(NAME).claims)
    assert re.findall(r"[│|] +(\d+) (?= *[│|])", row) == [str(by_class[each]) for each in CLASSES]
    assert sum(by_class.values()) == 6 and row.count(date) == 2 and "stale" not in row
    assert NAME in run("list", "kv_cache").output and NAME not in run("list", "embeddings").output
    assert run("list", "kvcache").exit_code == 2
    mini.replace("rows * columns", "columns * rows", mini.root / "snippets" / "models" / "tally.py")
    assert next(r for r in run("list").output.splitlines() if NAME in r).count("stale") == 2


def test_notebook_prints_one_and_takes_it_back(mini) -> None:
    made = run("notebook", NAME)
    assert made.exit_code == 0 and json.loads(made.output)["nbformat"] == 4
    (mini.root / "made.ipynb").write_text(made.output, encoding="utf-8")
    assert run("notebook", "made.ipynb").output == mini.page_path.read_text(encoding="utf-8")


def test_new_says_what_comes_next(mini) -> None:
    done = run("new", "kv_cache", "fresh", "Why so?")
    assert done.exit_code == 0 and "wrote docs/kv_cache/fresh.md" in done.output
    assert "measured record kv_cache/fresh" in done.output and run("check", "kv_cache/fresh").exit_code == 1


def test_build_counts_files(mini) -> None:
    assert "6 files written" in run("build").output and "0 files written" in run("build").output


def test_prepare_runs_the_steps_named(mini) -> None:
    path = mini.root / "pyproject.toml"
    assert run("prepare").exit_code == 0
    mini.replace("prepare = []", 'prepare = ["os:getcwd"]', path)
    from measured import project

    project._tools.cache_clear()
    assert "os:getcwd: ready" in run("prepare").output
    mini.replace("os:getcwd", "os:lost", path)
    project._tools.cache_clear()
    failed = run("prepare")
    assert failed.exit_code == 1 and "'os:lost'" in failed.output


@pytest.mark.parametrize(("failures", "code"), [([], 0), ([("claim c", "D", "x_bytes = 1")], 1)])
def test_nbval_counts_and_exits(mini, monkeypatch: pytest.MonkeyPatch, failures: list, code: int) -> None:
    status = [{"claim": "a", "status": "holds", "missing": [], "values": {}}]
    status += [{"claim": "b", "status": "not applicable", "missing": ["cuda"], "values": {}}]
    monkeypatch.setattr(rerun, "run_again", lambda name, path: Rerun(name, 1.0, 7, failures, status))
    done = run("nbval", "kv_cache/index", NAME)
    assert done.exit_code == code, done.output
    assert "2 pages executed, 14 cells, 2 claims not applicable here" in done.output
    assert "not applicable here: b" in done.output
    assert re.search(r"^2 passed, 0 failed$" if not failures else r"^0 passed, 2 failed$", done.output, re.M)
    assert ("kv_cache/sample: claim c: x_bytes = 1" in done.output) is bool(failures)


def test_ctrl_c_exits_130(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_names: object) -> list:
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "check_pages", stopped)
    done = run("check")
    assert done.exit_code == 130 and "stopped" in done.output


def test_a_missing_package_is_named_with_the_mend(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_names: object) -> list:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(checks, "check_pages", missing)
    done = run("check")
    assert done.exit_code == 2 and "torch is not installed" in done.output and "make test" in done.output

"""`measured run`: pages measured in processes of their own, their claims held to what came back."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from measured import page_process, project, run
from measured.cli import app
from measured.page import read_page
from snippets.instruments import device as devices

ROOT = Path(__file__).resolve().parents[2]
NAME = "kv_cache/sample"
MEASURE = "def measure(*, small=False, device=None, dtype=None):\n"


def invoke(*arguments: str, term: str = "dumb") -> Result:
    return CliRunner().invoke(app, ["run", *arguments], env={"COLUMNS": "200", "TERM": term})


def add(mini, name: str, body: str, check: str = "found_count == 1") -> None:
    """Another question of the sample project, with one claim and a `measure` of these lines."""
    (mini.root / "snippets" / f"{name}.py").write_text(f'"""Why?"""\n{MEASURE}    {body}\n', encoding="utf-8")
    claim = f'**1**{{ .claim #{name.replace("/", "-")} data-class=D data-check="{check}" }}'
    text = f'---\ntitle: Another\n---\n\n# Why? {{ data-page="{name}" }}\n\nIt is {claim}.\n'
    (mini.root / "docs" / f"{name}.md").write_text(text, encoding="utf-8")


def states(done: Result, page: str = NAME) -> dict[str, str]:
    """State of each claim of a page, by id, in a JSON answer."""
    found = next(each for each in json.loads(done.stdout)["pages"] if each["page"] == page)
    return {claim["id"]: claim["state"] for claim in found["claims"]}


def test_every_claim_is_told_with_the_values_here_and_as_recorded(mini) -> None:
    mini.replace('data-needs="cuda"', 'data-needs="abacus"')
    mini.replace("return 0.5", "return 0.25", mini.root / "snippets" / "models" / "tally.py")
    done = invoke(NAME, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert states(done) == {
        "box-bytes": "holds",
        "box-alike": "holds",
        "box-mean": "holds",
        "box-speed": "holds",
        "box-step": "on the page only",
        "box-cuda": "not applicable",
    }
    (page,) = found["pages"]
    by_id = {claim["id"]: claim for claim in page["claims"]}
    assert page["values"]["box_bytes"] == 120 and page["error"] is None and page["seconds"] > 0
    assert by_id["box-mean"]["here"] == {"mean_ratio": 0.25} and by_id["box-mean"]["recorded"] == {"mean_ratio": 0.5}
    assert by_id["box-cuda"]["missing"] == ["abacus"] and by_id["box-cuda"]["holds"] is True
    assert by_id["box-step"]["holds"] is None and by_id["box-step"]["here"] == {}
    assert found["version"] == run.RUN_VERSION and found["interrupted"] is False
    assert {"kind", "name", "threads", "capabilities"} <= found["machine"].keys()
    assert platform.node() not in done.stdout and str(Path.home()) not in done.stdout


def test_the_table_has_each_claim_its_check_and_its_state(mini) -> None:
    mini.replace('data-needs="cuda"', 'data-needs="abacus"')
    done = invoke(NAME)
    assert done.exit_code == 0 and "How big is a box?" in done.output
    rows = [[cell.strip() for cell in re.split("[│|]", row)[1:-1]] for row in done.output.splitlines() if "│" in row]
    assert ["at most 0.6×", "T", "mean_ratio <= 0.6", "0.5", "0.5", "–", "holds"] in rows
    assert ["120 bytes", "D", "box_bytes == 120", "120", "120", "–", "not applicable here: needs abacus"] in rows
    assert ["under 10 ms", "H", "step_seconds < 0.01", "–", "0.002", "–", "on the page only"] in rows
    assert f"{NAME}: 4 holds, 1 not applicable, 1 on the page only" in done.output
    assert "seconds" not in [row[-1] for row in rows], "one page needs no summary"


def test_predictions_for_this_kind_of_machine_stand_beside_what_it_measures(mini, monkeypatch) -> None:
    here = {"kind": "accelerator", "name": "NVIDIA H100 80GB HBM3", "threads": 1, "torch": "", "capabilities": []}
    monkeypatch.setattr(run, "machine", lambda options: here)
    done = invoke(NAME)
    rows = [[cell.strip() for cell in re.split("[│|]", row)[1:-1]] for row in done.output.splitlines() if "│" in row]
    assert ["at least 2×", "R", "speed_ratio >= 2", "4", "4", "4", "holds"] in rows
    assert "predicted for H100 SXM" in " ".join(done.output.split())
    (page,) = json.loads(invoke(NAME, "--json").stdout)["pages"]
    predicted = {claim["id"]: claim["predicted"] for claim in page["claims"]}
    assert page["predicted_for"] == "H100 SXM" and predicted["box-speed"] == {"speed_ratio": 4.0}
    assert predicted["box-step"] == {} and predicted["box-bytes"] == {}


def test_a_gated_claim_that_fails_exits_one(mini) -> None:
    mini.replace("rows * columns", "rows * columns + 1", mini.root / "snippets" / "models" / "tally.py")
    done = invoke(NAME, "--json")
    assert done.exit_code == 1
    assert {name for name, state in states(done).items() if state == "fails"} >= {"box-bytes", "box-alike"}
    assert states(done)["box-mean"] == "holds"


def test_exact_counts_alone_are_gated_at_small_sizes(mini) -> None:
    mini.replace("return 4.0", "return 1.0", mini.root / "snippets" / "models" / "tally.py")
    full, small = invoke(NAME, "--json"), invoke(NAME, "--json", "--small")
    assert (full.exit_code, states(full)["box-speed"]) == (1, "fails")
    assert (small.exit_code, states(small)["box-speed"]) == (0, "shown")
    assert json.loads(small.stdout)["options"]["small"] is True and states(small)["box-mean"] == "shown"
    rows = [row for row in invoke(NAME, "--small").output.splitlines() if "shown" in row and "│" in row]
    assert ["shown, does not hold" in row for row in rows if "2×" in row or "0.6×" in row] == [False, True]
    mini.replace("rows * columns", "rows * columns + 1", mini.root / "snippets" / "models" / "tally.py")
    assert invoke(NAME, "--small").exit_code == 1


def test_a_check_that_cannot_be_computed_fails_and_says_why(mini) -> None:
    claim = next(claim for claim in read_page(NAME).claims if claim.id == "box-alike")
    values = {"box_bytes": 120, "counted_bytes": 120}
    assert run.judge(claim, values, {}, []).state == "holds"
    broken = type(claim)(**{**vars(claim), "check": "box_bytes / counted_bytes == 1"})
    judged = run.judge(broken, values | {"counted_bytes": 0}, {}, [])
    assert judged.state == "fails" and "divides by zero" in judged.problem


def test_a_page_that_crashes_ends_alone_and_says_how(mini) -> None:
    add(mini, "kv_cache/divides", 'return {"found_count": 1 // 0}')
    add(mini, "kv_cache/aborts", "import os; os.abort()")
    add(mini, "kv_cache/leaves", 'import sys; print("no more", file=sys.stderr); sys.exit(3)')
    add(mini, "kv_cache/endless", 'return {"found_count": float("nan")}')
    add(mini, "kv_cache/lacks", "import no_such_package")
    done = invoke("kv_cache", "--json")
    found = {each["page"]: each["error"] for each in json.loads(done.stdout)["pages"]}
    assert done.exit_code == 1 and found.pop(NAME) is None
    line = MEASURE.count("\n") + 2
    divided = f"snippets/kv_cache/divides.py:{line}: ZeroDivisionError: integer division or modulo by zero"
    assert found == {
        "kv_cache/divides": divided,
        "kv_cache/aborts": "its process was ended by SIGABRT",
        "kv_cache/leaves": "its process exited 3: no more",
        "kv_cache/endless": "ValueError: found_count: no finite number",
        "kv_cache/lacks": f"snippets/kv_cache/lacks.py:{line}: ModuleNotFoundError: No module named 'no_such_package'; "
        "run `pip install -e '.[run]'`",
    }
    assert "measured: docs/kv_cache/divides.md: snippets/kv_cache/divides.py" in done.stderr


def test_pages_share_no_process_and_all_of_them_end_in_a_summary(mini) -> None:
    add(mini, "kv_cache/first", 'import os; return {"found_count": 1, "process_count": os.getpid()}')
    add(mini, "kv_cache/second", 'import os; return {"found_count": 2, "process_count": os.getpid()}')
    done = invoke("--all")
    assert done.exit_code == 1
    rows = {cells[1]: cells[2:-1] for row in done.output.splitlines() if len(cells := re.split(r" *[│|] *", row)) == 9}
    assert [rows[f"kv_cache/{name}"][:2] for name in ("first", "second")] == [["1", "0"], ["0", "1"]]
    assert rows[NAME][0] == "4" and float(rows[NAME][-1]) >= 0
    found = json.loads(invoke("kv_cache/first", "kv_cache/second", "--json").stdout)["pages"]
    assert len({each["values"]["process_count"] for each in found} | {os.getpid()}) == 3


def test_threads_dtype_and_device_reach_the_page_that_takes_them(mini) -> None:
    body = 'import os; return {"found_count": 1, "size_bytes": dtype.itemsize, '
    body += '"threads_count": int(os.environ["OMP_NUM_THREADS"]), "name_count": len(device)}'
    add(mini, "kv_cache/takes", body)
    done = invoke(NAME, "kv_cache/takes", "--dtype", "fp16", "--threads", "3", "--device", "cpu", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found["machine"]["threads"] == 3 and found["machine"]["kind"] == "cpu"
    sample, takes = found["pages"]
    assert takes["values"] == {"found_count": 1, "size_bytes": 2, "threads_count": 3, "name_count": 3}
    assert takes["notes"] == ["measured in fp16: a claim about the page's own dtype may fail for that alone"]
    assert sample["notes"] == [f"its snippet takes no {key}: measured as the page does" for key in ("device", "dtype")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name pages or topics, or give --all"),
        ([NAME, "--all"], "--all is every page"),
        (["kv_cache/sampel"], "no page 'kv_cache/sampel'; nearest: kv_cache/sample"),
        (["kv_cach"], "no page 'kv_cach'; nearest: kv_cache/"),
        (["kv_cache/index"], "no measure() for 'kv_cache/index'; nearest: kv_cache/"),
        (["--all", "--dtype", "int3"], "unknown dtype 'int3'; known: bf16, fp16, fp32"),
        ([NAME, "--dtype", "bf16"], f"--dtype bf16: {NAME} takes no dtype"),
        (["kv_cache/takes", "--device", "gpu"], "unknown device 'gpu'; known: cuda, mps, xpu, cpu"),
        (["kv_cache/takes", "--device", "xpu"], "no xpu device on this machine; available: cpu"),
        (["kv_cache/takes", "--device", "cpu:x"], "cpu:x"),
        ([NAME, "--threads", "0"], "--threads"),
    ],
)
def test_bad_input_exits_two_and_says_what_there_is(
    mini, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(devices, "_is_available", lambda kind: kind == "cpu")
    add(mini, "kv_cache/takes", 'return {"found_count": len(device)}')
    done = invoke(*arguments)
    assert done.exit_code == 2 and said in done.output, done.output
    assert "Traceback" not in done.output


def test_without_torch_it_names_what_installs_it(mini) -> None:
    code = f"import sys; sys.modules['torch'] = None; from measured.cli import app; app(['run', {NAME!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=mini.root, check=False)
    assert done.returncode == 2 and "torch is not installed" in done.stderr, done.stderr
    assert "pip install -e '.[run]'" in done.stderr and not done.stdout


def test_ctrl_c_ends_the_page_and_tells_those_that_are_done(mini) -> None:
    marker = mini.root / "sleeps"
    body = f"import os, pathlib, time; pathlib.Path({str(marker)!r}).write_text(str(os.getpid())); time.sleep(60)"
    add(mini, "kv_cache/sleeps", body)
    command = [sys.executable, "-m", "measured", "run", NAME, "kv_cache/sleeps", "--json"]
    process = subprocess.Popen(
        command, cwd=mini.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    give_up = time.monotonic() + 60
    while not (marker.is_file() and marker.read_text()) and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "stopped; 1 of 2 pages are done" in said
    found = json.loads(shown)
    assert found["interrupted"] is True and [each["page"] for each in found["pages"]] == [NAME]
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


def test_a_page_that_waits_for_another_timer_says_so(mini) -> None:
    add(mini, "kv_cache/waits", 'import sys; print("Waiting: another.", file=sys.stderr); return {"found_count": 1}')
    said: list[str] = []
    assert page_process.measure("kv_cache/waits", {}, None, said.append) == {"values": {"found_count": 1}}
    assert said == ["kv_cache/waits: Waiting: another."]


def test_a_terminal_shows_the_page_and_its_time_while_it_runs(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("measured.cli.errors", Console(file=terminal, force_terminal=True, width=100))
    assert invoke(NAME, term="xterm").exit_code == 0
    assert re.search(rf"{NAME} \(1 of 1\).*0:00:0\d", re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()))


def test_topics_stand_for_their_pages_and_nothing_runs_twice() -> None:
    everything = run.choose([])
    assert set(project.question_names()) <= set(everything) and "kv_cache/index" not in everything
    assert run.choose(["kv_cache", "kv_cache/offloading", "docs/kv_cache"]) == project.question_names("kv_cache")
    assert run.takes("kv_cache/bytes_per_token") == {"small", "device", "dtype"}
    assert "dtype" not in (run.takes("kv_cache/latent_attention") or {"dtype"})


@pytest.mark.models
def test_a_page_of_the_project_holds_at_small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = invoke("kv_cache/bytes_per_token", "--small", "--json", "--device", "cpu")
    found = states(done, "kv_cache/bytes_per_token")
    assert done.exit_code == 0 and set(found.values()) == {"holds"}, done.output
    assert set(found) == {claim.id for claim in read_page("kv_cache/bytes_per_token").claims}

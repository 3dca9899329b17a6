"""Recording pages: which, in what environment, and what is left behind when it goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from typer.testing import CliRunner, Result

from measured import project, recorder, recording, rerun
from measured.cli import app
from measured.page import read_page
from measured.recorder import Machine, RecordError, machine_for, record_page, stale_pages
from snippets.instruments import clock

BARE = """\
---
title: A
description: B
---

# A {{ data-page="kv_cache/{slug}" }}

```python
from measured.values import record

{code}
```

It is **1 byte**{{ .claim #{slug}-one data-class=D data-check="one_bytes == 1" }}.
"""


def add_page(mini, slug: str, code: str) -> str:
    (mini.root / "docs" / "kv_cache" / f"{slug}.md").write_text(BARE.format(slug=slug, code=code), encoding="utf-8")
    return f"kv_cache/{slug}"


@pytest.fixture
def here(mini) -> Machine:
    return machine_for("here", None, None)


@pytest.fixture
def quick(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test the import of torch in every kernel: what a run loaded and where is not what it looks at."""
    about = mini.book().metadata["measured"]
    machine = {**about["machine"], **about["versions"]}
    found = {"modules": list(about["modules"]), "model_files": {}, "machine": machine}
    monkeypatch.setattr(recorder, "_probe", lambda client, folder: found)


def command(*arguments: str) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})


def leftovers(root: Path) -> list[Path]:
    return [p for p in (root / "recordings").rglob("*") if p.is_file() and p.suffix not in (".ipynb", ".toml")]


def test_a_failed_cell_names_page_cell_and_line_and_leaves_the_old_recording(mini, here: Machine) -> None:
    before = mini.book_path.read_bytes()
    line = mini.replace('record("H", step_seconds=0.002)', 'lost = 1\nrecord("H", step_seconds=lost / 0)') + 1
    with pytest.raises(RecordError) as error:
        record_page("kv_cache/sample", here)
    said = str(error.value)
    assert said.startswith(f'docs/kv_cache/sample.md:{line}: cell 3, its line 5 (record("H", step_seconds=lost / 0))')
    assert "ZeroDivisionError: division by zero" in said
    assert mini.book_path.read_bytes() == before and not leftovers(mini.root)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('box_bytes == 120" }, and', 'box_bytes == 121" }, and', "check of claim box-bytes: ClaimFailedError"),
        ('record("H", step_seconds=0.002)', 'record("H", box_bytes=2)', "box_bytes is recorded twice"),
        ("count_values(rows=3, columns=5)", "count_values(rows=3,\n", ":39: cell 3, its line 1"),
    ],
)
def test_what_fails_a_page_is_said(mini, here: Machine, quick: None, old: str, new: str, said: str) -> None:
    mini.replace(old, new)
    with pytest.raises(RecordError) as error:
        record_page("kv_cache/sample", here)
    assert "docs/kv_cache/sample.md" in str(error.value) and said in str(error.value), str(error.value)


def test_a_failing_disk_leaves_the_old_recording_whole(
    mini, here: Machine, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mini.book_path.read_bytes()

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        record_page("kv_cache/sample", here)
    assert mini.book_path.read_bytes() == before and not leftovers(mini.root)


def test_a_half_written_text_is_never_seen(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mini.root / "docs" / "x.txt"
    path.write_text("old", encoding="utf-8")

    def half(self: Path, text: str, **_kwargs: object) -> None:
        with self.open("w", encoding="utf-8") as file:
            file.write(text[: len(text) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="disk full"):
        project.write_atomically(path, "something new")
    assert [(p.name, p.read_text()) for p in path.parent.glob("*x.txt*")] == [("x.txt", "old")]


def test_only_stale_pages_are_chosen_with_their_reasons(mini) -> None:
    names = ["kv_cache/index", "kv_cache/sample"]
    assert stale_pages(names, "here") == {}
    mini.replace("rows, columns) * 8", "rows, columns) * 8 + 0", mini.root / "snippets/kv_cache/sample.py")
    assert stale_pages(names, "here") == {"kv_cache/sample": ["the page's code cells"]}
    assert stale_pages(names, "one-thread") == {
        "kv_cache/index": ["not recorded yet"],
        "kv_cache/sample": ["the page's code cells"],
    }


def test_a_new_claim_alone_makes_a_page_stale(mini) -> None:
    mini.append('It is **120 bytes**{ .claim #box-again data-class=D data-check="box_bytes == 120" }.')
    assert stale_pages(["kv_cache/sample"], "here") == {"kv_cache/sample": ["claims"]}


def test_a_page_without_cells_is_never_recorded(mini) -> None:
    (mini.root / "docs" / "kv_cache" / "words.md").write_text('# W { data-page="kv_cache/words" }\n', encoding="utf-8")
    assert stale_pages(["kv_cache/words"], "here") == {}


def test_the_command_records_stale_pages_only_unless_forced(mini, quick: None) -> None:
    fresh = command("record", "kv_cache/index", "kv_cache/sample")
    assert fresh.exit_code == 0 and "nothing to record: 2 pages are fresh on here" in fresh.output
    before = mini.book_path.stat().st_mtime_ns
    name = add_page(mini, "other", 'record("D", one_bytes=1)')
    one = command("record")
    assert one.exit_code == 0 and f"recorded {name}, " in one.output and "(not recorded yet)" in one.output
    assert "kv_cache/sample" not in one.output and mini.book_path.stat().st_mtime_ns == before
    assert "nothing to record" in command("record").output
    forced = command("record", "--force", name)
    assert forced.exit_code == 0 and f"recorded {name}, " in forced.output


def test_a_failing_page_keeps_the_others_and_exits_one(mini, quick: None) -> None:
    bad = add_page(mini, "bad", 'record("D", one_bytes=1)\nraise ValueError("on purpose")')
    good = add_page(mini, "good", 'record("D", one_bytes=1)')
    done = command("record", bad, good)
    assert done.exit_code == 1
    assert "docs/kv_cache/bad.md:12: cell 1, its line 4" in done.output and f"recorded {good}" in done.output
    assert "1 of 2 pages failed, their old recordings are whole: kv_cache/bad" in done.output
    assert recording.path_of(good, "here").is_file() and not recording.path_of(bad, "here").exists()


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="SIGINT is sent the POSIX way")
def test_ctrl_c_keeps_what_is_done(mini) -> None:
    flag = mini.root / "second-runs"
    first = add_page(mini, "first", 'record("D", one_bytes=1)')
    second = add_page(
        mini,
        "second",
        f'record("D", one_bytes=1)\nimport pathlib, time\npathlib.Path({str(flag)!r}).touch()\ntime.sleep(60)',
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "measured", "record", first, second],
        cwd=mini.root,
        env={**os.environ, "MEASURED_ROOT": str(mini.root), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(flag.exists)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 30  # it did not wait for the cell
    assert process.returncode == 130, out + err
    assert "stopped; what was finished is kept" in err
    kept = json.loads(recording.path_of(first, "here").read_text(encoding="utf-8"))
    assert kept["metadata"]["measured"]["page"] == first
    assert not recording.path_of(second, "here").exists() and not leftovers(mini.root)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is sent the POSIX way")
def test_a_killed_recorder_resumes_and_loses_nothing_finished(mini, own_timing_lock: Path) -> None:
    flag, runs = mini.root / "second-runs", mini.root / "first-ran"
    first = add_page(mini, "first", f'record("D", one_bytes=1)\nopen({str(runs)!r}, "a").write("once ")')
    wait = f"import pathlib, time\nif not pathlib.Path({str(flag)!r}).exists():\n"
    wait += f"    pathlib.Path({str(flag)!r}).touch()\n    time.sleep(60)"
    second = add_page(mini, "second", f'record("D", one_bytes=1)\n{wait}')
    killed = subprocess.Popen(
        [sys.executable, "-m", "measured", "record", first, second],
        cwd=mini.root,
        env={**os.environ, "MEASURED_ROOT": str(mini.root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(flag.exists)
    kernels = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    path = recording.path_of(first, "here")
    finished, half = path.read_bytes(), path.with_name(f".{path.name}.{killed.pid}.tmp")
    half.write_text('{"cells": [', encoding="utf-8")  # as if it had been killed while it wrote
    assert [p for p in own_timing_lock.glob("measured-*") if p.is_dir()], "its sockets lie there still"

    done = mini.run("record", first, second)
    assert done.returncode == 0 and f"recorded {second}" in done.stdout, done.stdout + done.stderr
    assert f"recorded {first}" not in done.stdout and runs.read_text() == "once "
    assert path.read_bytes() == finished and recording.path_of(second, "here").is_file()
    assert not leftovers(mini.root) and not [p for p in own_timing_lock.glob("measured-*") if p.is_dir()]
    assert not psutil.wait_procs(kernels, timeout=20)[1], "a kernel outlived its recorder"


def test_a_page_over_its_budget_is_stopped_and_the_others_go_on(mini, quick: None) -> None:
    slow = add_page(mini, "slow", "import time\ntime.sleep(60)\nrecord('D', one_bytes=1)")
    path = recording.path_of(slow, "here")
    path.write_text("old", encoding="utf-8")
    fast = add_page(mini, "fast", 'record("D", one_bytes=1)')
    started = time.monotonic()
    done = command("record", "--force", slow, fast, "--budget", "5")
    assert done.exit_code == 1 and time.monotonic() - started < 30
    assert f"docs/{slow}.md: stopped after its budget of 5 s" in done.output
    assert f"1 of 2 pages failed, their old recordings are whole: {slow}" in done.output
    assert f"recorded {fast}" in done.output and path.read_text() == "old" and not leftovers(mini.root)


def test_when_time_is_up_it_says_what_is_left_and_how_to_go_on(mini, quick: None) -> None:
    fast = add_page(mini, "fast", 'record("D", one_bytes=1)')
    slow = add_page(mini, "slow", "import time\ntime.sleep(60)\nrecord('D', one_bytes=1)")
    last = add_page(mini, "unstarted", 'record("D", one_bytes=1)')
    done = command("record", fast, slow, last, "--machine", "here", "--total", "6")
    assert done.exit_code == 3, done.output
    assert f"recorded {fast}" in done.output and f"2 of 3 pages are left: {slow}, {last}" in done.output
    assert f"resume: measured record {fast} {slow} {last} --machine here --total 6" in done.output
    assert not recording.path_of(slow, "here").exists() and not leftovers(mini.root)


def test_what_was_forced_and_is_done_is_not_forced_again(mini, quick: None) -> None:
    slow = add_page(mini, "slow", "import time\ntime.sleep(60)\nrecord('D', one_bytes=1)")
    done = command("record", "--force", "kv_cache/sample", slow, "--total", "6")
    assert done.exit_code == 3 and f"resume: measured record {slow} --force --total 6" in done.output


def test_cheap_pages_come_first_where_time_is_short(mini) -> None:
    book = mini.book()
    book.metadata["measured"]["seconds"] = 0.1
    mini.write_book(book)
    new = add_page(mini, "another", 'record("D", one_bytes=1)')
    assert recorder.cheapest_first([new, "kv_cache/index", "kv_cache/sample"]) == [
        "kv_cache/sample",
        "kv_cache/index",
        new,
    ]


def test_a_kernel_has_its_machine_s_threads_and_leaves_no_file_behind(mini, own_timing_lock: Path) -> None:
    name = add_page(
        mini, "other", 'import os\nrecord("D", one_bytes=1, threads_count=int(os.environ["OMP_NUM_THREADS"]))'
    )
    before = {p.name for p in mini.root.iterdir()}
    record_page(name, machine_for("one-thread", None, None))
    have = recording.Recording("one-thread", recording.path_of(name, "one-thread"))
    assert have.values["threads_count"] == 1 and have.about["machine"]["threads"] == 1
    assert {p.name for p in mini.root.iterdir()} == before  # kernels talk by socket files
    assert not [p for p in own_timing_lock.glob("measured-*") if p.is_dir()]


def test_a_machine_of_another_processor_is_refused(mini) -> None:
    table = mini.root / "recordings" / "machines.toml"
    table.write_text(table.read_text().replace('processor = "', 'processor = "Another '), encoding="utf-8")
    recording.machine_table.cache_clear()
    with pytest.raises(RecordError, match=r"machine 'here' is a Another .*record under a name of its own"):
        machine_for("here", None, None)
    refused = command("record", "--force", "kv_cache/sample")
    assert refused.exit_code == 1 and "record under a name of its own" in refused.output


def test_a_machine_keeps_its_threads(mini) -> None:
    with pytest.raises(RecordError, match="records on 2 threads; use another name for 1"):
        machine_for("here", 1, None)


@pytest.mark.parametrize("name", ["Here", "a b", "../x", "a_b", "-a", ""])
def test_a_malformed_machine_name_is_refused(mini, name: str) -> None:
    with pytest.raises(RecordError, match="lower-case words and digits"):
        machine_for(name, None, None)
    assert name not in (mini.root / "recordings" / "machines.toml").read_text() or name == ""


def test_a_new_machine_is_entered_with_its_label_and_threads(mini) -> None:
    made = machine_for("my-laptop", 1, "My laptop")
    assert made == Machine("my-laptop", "My laptop", 1)
    assert recording.machine_table(project.root())["my-laptop"]["label"] == "My laptop"
    assert machine_for("my-laptop", None, None) == made
    assert set(recording.machine_table(project.root())) == {"here", "one-thread", "my-laptop"}


def test_a_machine_with_a_gpu_is_entered_by_the_gpu_s_name(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=85 * 10**9, major=9, minor=0, L2_cache_size=2**20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    made = machine_for("h100", None, None)
    entry = recording.machine_table(project.root())["h100"]
    assert made.label == entry["label"] == entry["processor"] == gpu.name
    assert machine_for("h100", None, None) == made
    gpu.name = "NVIDIA A100-SXM4-80GB"
    with pytest.raises(RecordError, match="machine 'h100' is a NVIDIA H100 80GB HBM3, this is a NVIDIA A100-SXM4-80GB"):
        machine_for("h100", None, None)


def test_a_misspelt_machine_is_no_new_one(mini) -> None:
    with pytest.raises(project.UnknownNameError, match="no machine 'one-thred'; nearest: one-thread"):
        machine_for("one-thred", None, None)
    assert machine_for("one-thred", 1, "Spelt so on purpose").name == "one-thred"


def test_pages_inherit_the_lock_that_the_recorder_holds(mini, own_timing_lock: Path) -> None:
    """A second recorder waits and says so; the page that the first runs may time without waiting for it."""
    name = add_page(
        mini,
        "timed",
        'from snippets.instruments.clock import timing_lock\n\nwith timing_lock():\n    record("D", one_bytes=1)',
    )
    clock._lock.cache_clear()
    command = [sys.executable, "-m", "measured", "record", name]
    environment = {**os.environ, "MEASURED_ROOT": str(mini.root), "COLUMNS": "200"}
    with clock.timing_lock():
        process = subprocess.Popen(
            command, cwd=mini.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        assert "Waiting: another process" in process.stderr.readline()
        time.sleep(0.5)
        assert process.poll() is None and not recording.path_of(name, "here").exists()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert recording.path_of(name, "here").is_file()


def test_recorder_environment_names_the_project_and_fixes_hashes(mini) -> None:
    environment = recorder.kernel_environment(3)
    assert environment["MEASURED_ROOT"] == str(project.root()) and environment["PYTHONHASHSEED"] == "0"
    assert environment["OMP_NUM_THREADS"] == "3" and clock.LOCK_HELD in environment
    assert read_page("kv_cache/sample").cells  # the project named is this one


def test_cores_are_left_to_others_when_running_again_and_never_when_recording(
    mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(clock.FREE_CORES, "1")
    assert not recorder.kernel_environment(3)[clock.FREE_CORES]
    asked: list[dict] = []

    def environment(threads: int, **how: bool) -> dict[str, str]:
        asked.append(how)
        return {}

    monkeypatch.setattr(recorder, "kernel_environment", environment)
    monkeypatch.setattr(rerun.subprocess, "run", lambda *a, **k: pytest.fail("far enough"))
    with pytest.raises(pytest.fail.Exception):
        rerun.run_again("kv_cache/sample", mini.root / "x.ipynb")
    assert asked == [{"free_cores": True}]

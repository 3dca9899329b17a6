"""Triton's interpreter computes a GPU kernel on any processor, in a process of its own as the switch needs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux alone"
)


def interpret(path: str, function: str) -> str:
    """What a function of the file at `path` prints where kernels are interpreted; its failure is the test's."""
    done = subprocess.run(
        [sys.executable, "-c", f"import runpy; runpy.run_path({path!r})[{function!r}]()"],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

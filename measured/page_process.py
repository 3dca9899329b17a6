"""A page's own process: it imports one snippet, calls its `measure`, and hands back what that returned.

Values stay apart this way, threads are set before torch loads, and a crash ends one page.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import project

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5  # what a page gets to clean up after Ctrl-C


def measure(name: str, arguments: dict[str, Any], threads: int | None, say: Callable[[str], None]) -> dict[str, Any]:
    """`{"values": ...}` or `{"error": ...}` of a page's process; whatever ends this call ends that process too.

    Args:
        name: The page.
        arguments: What its `measure` is called with; a dtype by name.
        threads: How many compute; torch's own choice if None.
        say: Where a line goes that the process waits for another timer.
    """
    environment = {**os.environ, "MEASURED_ROOT": str(project.root()), "PYTHONHASHSEED": "0"}
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    with tempfile.TemporaryDirectory(prefix="measured-") as scratch:
        result, log = Path(scratch) / "result.json", Path(scratch) / "stderr"
        command = [sys.executable, "-m", "measured.page_process", name, str(result), json.dumps(arguments)]
        with log.open("wb") as sink, log.open(encoding="utf-8", errors="replace") as said:
            child = subprocess.Popen(
                command, cwd=project.root(), env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=sink, start_new_session=True,
            )  # fmt: skip
            lines: list[str] = []
            try:
                while child.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(_POLL_SECONDS)
                    lines += (new := said.readlines())
                    for line in new:
                        if line.startswith("Waiting:"):
                            say(f"{name}: {line.strip()}")
            finally:
                _end(child)
            lines += said.readlines()
        if result.is_file():
            found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            return found
        code = child.returncode
        how = f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process exited {code}"
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return {"error": f"{how}{f': {last}' if last else ''}"}


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a page's process, and what it started, if it did not end well by itself."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_SECONDS)
    if child.returncode != 0:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _measure(page: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the page's process does."""
    try:
        if "dtype" in arguments:
            arguments["dtype"] = getattr(importlib.import_module("torch"), arguments["dtype"])
        found = importlib.import_module(f"snippets.{page.replace('/', '.')}").measure(**arguments)
        values = {name: int(value) if isinstance(value, int) else float(value) for name, value in found.items()}
        if endless := [name for name, value in values.items() if not math.isfinite(value)]:
            raise ValueError(f"{', '.join(endless)}: no finite number")
    except Exception as error:  # whatever a snippet raises ends this page alone, and is told
        frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        inner = [(path, line) for path, line in frames if path.is_relative_to(project.root() / "snippets")]
        where = "".join(f"{path.relative_to(project.root()).as_posix()}:{line}: " for path, line in inner[-1:])
        mend = "; run `pip install -e '.[run]'`" if isinstance(error, ModuleNotFoundError) else ""
        return {"error": f"{where}{type(error).__name__}: {error}{mend}"}
    return {"values": values}


if __name__ == "__main__":
    _page, _result, _arguments = sys.argv[1:]
    _found = _measure(_page, json.loads(_arguments))
    project.write_atomically(Path(_result), json.dumps(_found))

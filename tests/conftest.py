"""What every test needs of the process that it runs in."""

from __future__ import annotations

import os
import signal

import pytest

# Consoles take their width when they are made: that of whoever runs the tests must not wrap what tests read.
os.environ["COLUMNS"] = "200"


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C reaches this process and those that tests start, even where a shell began it in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # processes that are started inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""Live pages: the site on this machine, beside a Jupyter Server on which its cells run.

Whoever holds the token runs code as this user. So it is new at each start, goes to the server in a file that only
this user reads and to the browser in a link's fragment, which no server sees; both servers listen on loopback alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from measured import project

HOST = "127.0.0.1"
"""Where both servers listen. The name localhost is another origin to a browser, which the Jupyter Server refuses."""

LIVE = "MEASURED_LIVE"
"""Name of the environment variable by which the site's hook knows that it serves live pages."""

_NEEDED = ("jupyter_server", "ipykernel", "torch")
_START_SECONDS = 60
_GRACE_SECONDS = 10  # what a server gets to end its kernels
_POLL_SECONDS = 0.1
_SOCKET_FOLDER_LENGTH = 50  # a socket's path has about a hundred characters at most, and a kernel's name takes half
_IDLE_SECONDS = 1800  # a kernel whose tab is gone


def serve(port: int, *, live: bool = True) -> None:
    """Serve the site, live where the `run` extra is installed, until Ctrl-C or until one of the servers ends.

    Args:
        port: The site's port; the Jupyter Server takes a free one.
        live: Whether pages may run.

    Raises:
        ValueError: The port is taken, or a server ended.
    """
    from measured.build import build

    _require_free(port)
    build()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    with ExitStack() as running:
        running.enter_context(_ended_like_ctrl_c())
        environment = dict(os.environ)
        environment.pop(LIVE, None)
        if live and not missing:
            folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="measured-live-")))
            token = secrets.token_urlsafe(32)
            jupyter, jupyter_port = running.enter_context(jupyter_server(folder, port, token))
            environment[LIVE] = "1"
        else:
            jupyter = None
        command = [sys.executable, "-m", "mkdocs", "serve", "--dev-addr", f"{HOST}:{port}"]
        site = running.enter_context(_running(command, signal.SIGINT, cwd=project.root(), env=environment))
        while site.poll() is None and not _answers(port):  # a whole site takes a while to build
            time.sleep(_POLL_SECONDS)
        if jupyter and site.poll() is None:
            _tell(f"http://{HOST}:{port}/#live={jupyter_port}.{token}", folder / "link")
        elif missing and live:
            print(f"To run pages too: make live ({', '.join(missing)} not installed)", flush=True)
        while site.poll() is None and (jupyter is None or jupyter.poll() is None):
            time.sleep(_POLL_SECONDS)
        raise ValueError("the site's server ended: see above" if site.poll() is not None else "Jupyter Server ended")


def require_loopback(host: str) -> None:
    """Refuse to listen anywhere but on loopback.

    Raises:
        ValueError: The host is another one.
    """
    if host not in (HOST, "localhost"):
        raise ValueError(f"{host} is refused: whoever reaches a live page runs code here; only {HOST} is served")


def _require_free(port: int) -> None:
    try:
        with socket.create_server((HOST, port)):
            pass
    except OSError as error:
        raise ValueError(
            f"port {port} cannot be had ({error.strerror}): name another: --port {port + 1}, or make PORT={port + 1}"
        ) from None


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def settings(port: int, token: str) -> dict[str, Any]:
    """Configuration of the Jupyter Server for the site on a port: all that it has."""
    return {
        "ServerApp": {
            "ip": HOST,
            "port": 0,
            "port_retries": 0,
            "allow_origin": f"http://{HOST}:{port}",
            "allow_remote_access": False,
            "local_hostnames": [],
            "identity_provider_class": "measured.live.server.Identity",
            "allow_unauthenticated_access": False,
            "jpserver_extensions": {},
            "terminals_enabled": False,
            "open_browser": False,
            "allow_root": True,  # containers: what serves the site runs as root there anyway
            "root_dir": str(project.root()),
        },
        "IdentityProvider": {"token": token},
        "MappingKernelManager": {
            "cull_idle_timeout": _IDLE_SECONDS,
            "cull_interval": _IDLE_SECONDS // 10,
            "cull_connected": False,
            "default_kernel_name": "python3",
        },
    }


@contextmanager
def jupyter_server(folder: Path, port: int, token: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A Jupyter Server for the site on a port: its process and its own port; it ends with the block.

    Args:
        folder: An empty folder of this user alone: configuration, sockets and the log `jupyter.log`.
        port: The site's port.
        token: What the server asks for.

    Raises:
        ValueError: It did not start; with its last words.
    """
    from snippets.instruments.clock import FREE_CORES

    places = {name: folder / name for name in ("config", "data", "runtime", "ipython")}
    for place in places.values():
        place.mkdir(mode=0o700)
    given = settings(port, token)
    if os.name == "posix" and len(str(places["runtime"])) < _SOCKET_FOLDER_LENGTH:
        given["KernelManager"] = {"transport": "ipc"}  # TCP on loopback is open to every user of the machine
    _write_private(places["config"] / "jupyter_server_config.json", json.dumps(given))
    # Neither the server nor a kernel reads what else stands in the user's folders.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER_", "IPYTHON", LIVE))}
    environment |= {
        "JUPYTER_CONFIG_DIR": str(places["config"]),
        "JUPYTER_DATA_DIR": str(places["data"]),
        "JUPYTER_RUNTIME_DIR": str(places["runtime"]),
        "IPYTHONDIR": str(places["ipython"]),
        "MEASURED_ROOT": str(project.root()),
        "PYTHONHASHSEED": "0",
        FREE_CORES: "1",  # a browser and the site's server compute beside it
    }
    log = folder / "jupyter.log"
    command = [sys.executable, "-m", "measured.live.server"]
    with (
        open(log, "wb", opener=_private) as said,
        _running(command, signal.SIGTERM, cwd=folder, env=environment, stdout=said, stderr=said) as process,
    ):
        until = time.monotonic() + _START_SECONDS
        info = places["runtime"] / f"jpserver-{process.pid}.json"
        found: dict[str, Any] = {}
        while not found:
            if process.poll() is not None or time.monotonic() > until:
                last = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(True)[-5:]).strip()
                raise ValueError(f"Jupyter Server did not start: {last or 'it said nothing'}")
            time.sleep(_POLL_SECONDS)
            # It listens before it writes this; a port asked without it might be another user's by now.
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                found = json.loads(info.read_text(encoding="utf-8"))
        yield process, int(found["port"])


def _tell(link: str, path: Path) -> None:
    """Show the link where someone looks; elsewhere, as in a log, only the path of a file that holds it."""
    if sys.stdout.isatty():
        print(f"Live pages: {link}", flush=True)
    else:
        _write_private(path, f"{link}\n")
        print(f"Live pages: the link stands in {path}", flush=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_private(path: Path, text: str) -> None:
    with open(path, "x", encoding="utf-8", opener=_private) as file:
        file.write(text)


@contextmanager
def _running(command: list[str], end: signal.Signals, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own session, so that Ctrl-C reaches it through us alone; ended with the block."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.send_signal(end)
            process.wait(_GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """A terminal that closes, or `kill`, ends both servers too."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

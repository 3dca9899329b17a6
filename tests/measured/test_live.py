"""Live pages, without a server: who is refused, what is new at each start, and what stays out of a built site."""

from __future__ import annotations

import itertools
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mkdocs.config.config_options import ExtraScriptValue
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from typer.testing import CliRunner

from measured import live, live_hook
from measured.cli import app


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org", ""])
def test_another_host_than_loopback_is_refused(host: str) -> None:
    done = CliRunner().invoke(app, ["serve", "--host", host], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 2 and "refused" in done.output, done.output


def test_a_port_in_use_is_named_with_another(mini) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["serve", "--port", str(port)], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 1 and f"port {port} cannot be had" in done.output and f"--port {port + 1}" in done.output


class Started:
    """Stands in for the two servers: what each was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[str] = []
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.links: list[tuple[str, int]] = []
        self.folders: list[Path] = []
        monkeypatch.setattr(live, "jupyter_server", self.jupyter)
        monkeypatch.setattr(live, "_running", self.running)

    @contextmanager
    def jupyter(self, folder: Path, port: int, token: str) -> Iterator[tuple[Any, int]]:
        self.tokens.append(token)
        self.folders.append(folder)
        yield SimpleNamespace(poll=lambda: None), 4321

    @contextmanager
    def running(self, command: list[str], _end: object, **options: Any) -> Iterator[Any]:
        self.commands.append(command)
        self.environments.append(options["env"])
        codes = itertools.chain([None] * 3, itertools.repeat(0))
        with socket.create_server(("127.0.0.1", int(command[-1].rpartition(":")[2]))):
            try:
                yield SimpleNamespace(poll=lambda: next(codes))
            finally:
                for link in (folder / "link" for folder in self.folders[-1:]):
                    self.links.append((link.read_text(encoding="utf-8"), stat.S_IMODE(link.stat().st_mode)))


def test_every_start_has_a_token_of_its_own_that_only_its_owner_reads(mini, monkeypatch, capsys) -> None:
    started, port = Started(monkeypatch), free_port()
    for _ in range(2):
        with pytest.raises(ValueError, match="site's server ended"):
            live.serve(port)
    first, second = started.tokens
    assert first != second and min(len(first), len(second)) >= 43  # 256 bits in base 64
    assert started.links == [(f"http://127.0.0.1:{port}/#live=4321.{token}\n", 0o600) for token in started.tokens]
    assert not any(folder.exists() for folder in started.folders)
    said = capsys.readouterr()
    shown = f"{said.out} {said.err} {started.commands} {started.environments}"
    assert first not in shown and second not in shown
    assert all(str(folder / "link") in said.out for folder in started.folders)
    assert [e[live.LIVE] for e in started.environments] == ["1", "1"]


@pytest.mark.parametrize("wanted", [True, False])
def test_without_the_extra_or_the_wish_the_site_is_served_alone(mini, monkeypatch, capsys, wanted: bool) -> None:
    started, port = Started(monkeypatch), free_port()
    monkeypatch.setenv(live.LIVE, "1")
    if wanted:
        monkeypatch.setattr(live, "_NEEDED", ("jupyter_server_that_is_not_here",))
    with pytest.raises(ValueError, match="site's server ended"):
        live.serve(port, live=wanted)
    said = capsys.readouterr().out
    assert started.tokens == [] and live.LIVE not in started.environments[0]
    assert started.commands[0][-1] == f"127.0.0.1:{port}" and ("make live" in said) == wanted


def test_a_terminal_is_shown_the_link(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    live._tell("http://127.0.0.1:1/#live=2.three", tmp_path / "link")
    assert "#live=2.three" in capsys.readouterr().out and not (tmp_path / "link").exists()


def test_the_server_listens_on_loopback_for_one_origin_and_opens_no_terminal() -> None:
    given = live.settings(8000, "secret")["ServerApp"]
    assert given["ip"] == "127.0.0.1" and given["allow_origin"] == "http://127.0.0.1:8000"
    refused = ("allow_remote_access", "terminals_enabled", "allow_unauthenticated_access", "open_browser")
    assert not any(given[name] for name in refused) and given["local_hostnames"] == []


@pytest.mark.parametrize(
    ("command", "environment", "added"), [("serve", "1", True), ("serve", "", False), ("build", "1", False)]
)
def test_the_hook_adds_the_client_only_where_it_is_served_live(
    monkeypatch, tmp_path: Path, command: str, environment: str, added: bool
) -> None:
    monkeypatch.setitem(os.environ, live.LIVE, environment)
    monkeypatch.setattr(live_hook, "_on", False)
    (tmp_path / "docs").mkdir()
    config = MkDocsConfig()
    config.load_dict({"site_name": "s", "docs_dir": str(tmp_path / "docs"), "site_dir": str(tmp_path / "site")})
    assert config.validate() == ([], [])
    monkeypatch.setattr(config.plugins, "_current_plugin", "hook", raising=False)  # MkDocs names whom it calls
    files = Files([])
    live_hook.on_startup(command, False)
    live_hook.on_config(config)
    live_hook.on_files(files, config)
    made = {each.src_uri: each.content_string for each in files}
    assert bool(made) == bool(config.extra_javascript) == bool(config.extra_css) == added
    if added:
        script = config.extra_javascript[0]
        assert isinstance(script, ExtraScriptValue) and script.type == "module"
        assert made["live/live.js"].startswith("const INKS = [")
        assert ".ma-live-bar" in made["live/live.css"]

"""A hook of MkDocs for `measured serve` alone: adds the script that runs a page's cells here.

A built site never holds it: the hook acts only where MkDocs serves and `measured serve` says that a Jupyter Server
stands beside it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mkdocs.config.config_options import ExtraScriptValue
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from measured.drawing import PALETTE
from measured.live import LIVE

_CLIENT = Path(__file__).with_name("live")
_SCRIPT, _STYLE = "live/live.js", "live/live.css"
_on = False


def on_startup(command: str, dirty: bool) -> None:
    """Decide once."""
    global _on
    _on = command == "serve" and bool(os.environ.get(LIVE))


def on_config(config: MkDocsConfig) -> None:
    """Name script and style on every page."""
    if _on:
        script = ExtraScriptValue(_SCRIPT)
        script.type = "module"
        config.extra_javascript.append(script)
        config.extra_css.append(_STYLE)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add them; the script is told the inks of recorded charts, which the site's colours replace."""
    if _on:
        inks = f"const INKS = {json.dumps(PALETTE)}\n"
        client = (_CLIENT / "live.js").read_text(encoding="utf-8")
        files.append(File.generated(config, _SCRIPT, content=inks + client))
        files.append(File.generated(config, _STYLE, content=(_CLIENT / "live.css").read_text(encoding="utf-8")))


def on_serve(server: Any, config: MkDocsConfig, builder: Any) -> None:
    """Reload pages when the client changes, as when a page does."""
    if _on:
        server.watch(str(_CLIENT))

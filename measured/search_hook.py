"""MkDocs hook for the notebook views alone: out of search, a shared style sheet, a way back.

mkdocs-jupyter writes its whole style sheet into every page it makes; here all of them share one file. Nothing
that a reader needs rests on this: other engines ignore hooks.
"""

from __future__ import annotations

import hashlib
import html
import posixpath
import re
from pathlib import Path
from typing import Any

_STYLE = re.compile(r"<style[^>]*>(.*?)</style>", re.S)
_sheets: dict[str, str] = {}


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Move a notebook view's styles into a file, and put links to its page and its download on top."""
    source = page.file.src_uri
    if not source.endswith(".ipynb"):
        return content
    page.meta["search"] = {"exclude": True}
    styles = "\n".join(_STYLE.findall(content))
    name = f"assets/notebook.{hashlib.sha256(styles.encode()).hexdigest()[:8]}.css"
    _sheets[name] = styles
    above = posixpath.dirname(page.url)
    _, _, topic, slug = source.removesuffix(".ipynb").split("/")
    links = {
        "Back to the answer": posixpath.relpath(f"{topic}/{slug}.html", above),
        "Download this notebook": posixpath.relpath(source, above),
    }
    bar = " · ".join(f'<a href="{html.escape(href)}">{text}</a>' for text, href in links.items())
    sheet = f'<link rel="stylesheet" href="{posixpath.relpath(name, above)}">'
    return f'{sheet}<p class="ma-notebook-bar">{bar}</p>{_STYLE.sub("", content)}'


def on_post_build(config: Any) -> None:
    """Write the style sheets that notebook views share."""
    for name, styles in _sheets.items():
        path = Path(config["site_dir"]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(styles, encoding="utf-8")

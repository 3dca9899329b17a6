"""MkDocs hook for the notebook views alone: out of search, a shared style sheet, formulas, a way back.

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
# Formulas as the notebook has them; whatever stands in code, scripts and drawings is passed over.
_FORMULA = re.compile(
    r"(?P<keep><(?P<tag>pre|code|script|svg|clipboard-copy)\b.*?</(?P=tag)>|<div[^>]*clipboard-copy-txt.*?</div>)"
    r"|\$\$(?P<block>[^$]+)\$\$|\$(?P<inline>[^$\n]+)\$",
    re.S,
)
# The extension links what every engine has, the plain file; the view beside it is this engine's own.
_DOWNLOAD = re.compile(r'<a class="ma-notebook" href="([^"]+)\.ipynb" download>')
_sheets: dict[str, str] = {}


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Give pages a link to their notebook's view; give a view its page, its download and a shared style sheet."""
    source = page.file.src_uri
    if not source.endswith(".ipynb"):
        return _DOWNLOAD.sub(r'<a href="\1.html">read the notebook</a> · \g<0>', content)
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
    body = _FORMULA.sub(_mathml, _STYLE.sub("", content))
    return f'{sheet}<p class="ma-notebook-bar">{bar}</p>{body}'


def _mathml(match: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    if match["keep"]:
        return match["keep"]
    display = "block" if match["block"] else "inline"
    return convert(html.unescape(match["block"] or match["inline"]).strip(), display=display)


def on_post_build(config: Any) -> None:
    """Write the style sheets that notebook views share."""
    for name, styles in _sheets.items():
        path = Path(config["site_dir"]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(styles, encoding="utf-8")

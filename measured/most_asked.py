"""Most asked: every question with its short answer, on one page to be read in one scroll the evening before."""

from __future__ import annotations

from measured import weave
from measured.page import Page, read_page
from measured.quotes import quote
from measured.verdict_list import topic_title

# Front matter's `asked`, and how often that is.
OFTEN = {1: "Nearly every interview", 2: "Many interviews", 3: "Now and then"}


def most_asked(_argument: str = "") -> str:
    """What `<!-- pull most-asked -->` becomes.

    Most asked first; questions asked alike stay together by topic, in the navigation's order: each answer rests on
    words that the one before explains, and changing topics with every answer would cost that.
    """
    pages = [read_page(name) for name in weave.question_order()]
    groups = {rank: [page for page in pages if rank_of(page) == rank] for rank in OFTEN}
    groups = {rank: group for rank, group in groups.items() if group}
    if not groups:
        return "No question has a page yet."
    parts = ['<details class="ma-jump" markdown>', "<summary>Jump to a question</summary>", ""]
    for rank, group in groups.items():
        links = " · ".join(f"[{page.meta.get('title', page.heading[0])}](#{_anchor(page)})" for page in group)
        parts += [f"**{OFTEN[rank]}:** {links}", ""]
    parts += ["</details>", ""]
    for rank, group in groups.items():
        parts += [f"## {OFTEN[rank]}", ""]
        for page in group:
            parts += _entry(page)
    return "\n".join(parts)


def rank_of(page: Page) -> int:
    """How often a question is asked, from one (nearly always); a page just begun has no rank of its own yet."""
    asked = page.meta.get("asked")
    return asked if asked in OFTEN else max(OFTEN)


def _entry(page: Page) -> list[str]:
    topic = page.name.split("/")[0]
    return [
        '<section class="ma-asked" markdown>',
        "",
        f'<p class="ma-where">{topic_title(topic)}</p>',
        "",
        f"### [{page.heading[0]}]({page.name}.md) {{ #{_anchor(page)} }}",
        "",
        quote(page.answer, page.name, f"{page.name}.md"),
        "",
        "</section>",
        "",
    ]


def _anchor(page: Page) -> str:
    return page.name.split("/")[1].replace("_", "-")

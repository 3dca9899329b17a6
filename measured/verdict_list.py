"""Things people say: every statement of the sources with its verdict, why, and the number that decides it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from measured import project, weave
from measured.page import Verdict, read_page
from measured.quotes import claim_mark, quote

# As the list shows them: what is false first.
WORDS = {"refuted": "Refuted", "holds-if": "Holds if", "not-measured": "Not measured", "holds": "Holds"}
BROKEN = "Broken: a claim it stands on fails"
_LINE = re.compile(r"^[-*] +\**(?P<label>\w+)\**: *(?P<links>.*)$", re.M)
_WORDS_OF = re.compile(r"\[(?P<words>[^\]]*)\]\([\w./-]*#(?P<id>[\w-]+)\)")


@dataclass(frozen=True)
class Said:
    """A statement, where its verdict stands, and the verdict."""

    page: str
    verdict: Verdict

    @property
    def text(self) -> str:
        """The statement as a sentence without its full stop."""
        said = self.verdict.title.partition(":")[2].strip()
        return said[:1].upper() + said[1:]

    @property
    def topic(self) -> str:
        return self.page.split("/")[0]

    @property
    def address(self) -> str:
        """From the folder of all pages."""
        return f"{self.page}.md#{weave.verdict_id(self.verdict.statement)}"

    @property
    def why(self) -> str:
        """The verdict's reasoning, without the list of its claims, as Markdown for a page beside the topics."""
        prose = self.verdict.body.partition("\n- ")[0].strip()
        return quote(" ".join(prose.split()), self.page, f"{self.page}.md")


def all_said() -> list[Said]:
    """Every statement with a verdict: by verdict, then in the order of topics and pages."""
    found = [Said(name, verdict) for name in project.page_names() for verdict in read_page(name).verdicts]
    order = list(WORDS)
    return sorted((s for s in found if s.verdict.status in WORDS), key=lambda s: order.index(s.verdict.status))


def verdict_list(_argument: str = "") -> str:
    """What `<!-- pull verdicts -->` becomes: a group for each verdict, a row for each statement."""
    rows = all_said()
    parts = []
    for status, word in WORDS.items():
        group = [said for said in rows if said.verdict.status == status]
        if group:
            parts += ['<section class="ma-said-group" markdown>', "", f"## {word} {{ #{status} }}", ""]
            parts += ['<ul class="ma-said" markdown>', *(line for said in group for line in _row(said)), "</ul>", ""]
            parts += ["</section>", ""]
    return "\n".join(parts) if parts else "No statement has a verdict yet."


def badge(verdict: Verdict) -> str:
    """A verdict's word, with its icon and tone by class: never by colour alone."""
    broken = weave.verdict_broken(verdict)
    word = BROKEN if broken else WORDS[verdict.status]
    return f'<span class="ma-verdict {verdict.status}{" broken" if broken else ""}">{word}</span>'


def topic_title(topic: str) -> str:
    """A topic's name as its page has it."""
    return read_page(f"{topic}/index").heading[0]


def _row(said: Said) -> list[str]:
    verdict = said.verdict
    data = f'data-statement="{verdict.statement}" data-verdict="{verdict.status}" data-topic="{said.topic}"'
    return [
        f'<li {data} markdown="block">',
        "",
        f"{badge(verdict)} [{said.text}]({said.address})",
        "",
        said.why,
        "",
        *_evidence(verdict),
        f'<p class="ma-where">{topic_title(said.topic)} · {verdict.statement}</p>',
        "",
        "</li>",
    ]


def _evidence(verdict: Verdict) -> Iterator[str]:
    """For each side of a verdict the first of its claims that states a number, with the words that name it."""
    for line in _LINE.finditer(verdict.body):
        links = [(link["words"], *claim_mark(link["id"])) for link in _WORDS_OF.finditer(line["links"])]
        if links:
            words, mark, page = next((each for each in links if re.search(r"\d", each[1].partition("{")[0])), links[0])
            yield f"*{line['label']}:* {words}, {quote(mark, page, f'{page}.md')}"
            yield from ("{ .ma-side }", "")

"""Python-Markdown extension: recorded outputs under each fence, evidence on each claim, answers on topic pages.

An extension and neither hook nor plugin, so that every engine that reads `mkdocs.yml` shows the same page. It is
not told which page it renders: the page names itself in its heading, `# Question? { data-page="topic/slug" }`.
"""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.postprocessors import Postprocessor
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor

from measured import cards, claims, estimates, layers, project, pulled, recording, sources
from measured import page as pages
from measured.estimates import Estimate
from measured.expression import ExpressionError
from measured.page import MARK_KINDS, Page
from measured.quotes import quote
from measured.recording import Recording
from measured.show import show_outputs, show_recorded
from measured.show_predictions import predicted_and_measured

_NAMED = re.compile(r'^# .*\bdata-page="(?P<name>[\w/-]+)"', re.M)
_QUESTIONS = re.compile(r"^<!-- questions -->$", re.M)
_VERDICT = re.compile(r"^!!! verdict (?P<status>[\w-]+)(?= |$)(?P<rest>.*)$", re.M)
_POWER = "\ue000"  # of the private use area: no page has it
_CLASS_MEANS = {
    "D": "exact",
    "T": "within a derived tolerance",
    "R": "one-sided ratio of times",
    "H": "one device's value, not gated",
}


class Weave(Preprocessor):
    """Before fences are read: outputs after each executed fence, formulas, verdict states, pulled answers.

    Runs after whitespace is normalised (that would strip stashed HTML) and after includes are expanded.
    """

    def run(self, lines: list[str]) -> list[str]:
        text = pulled.pull("\n".join(lines))
        self.md.measured_page = None  # type: ignore[attr-defined]
        named = _NAMED.search(text)
        if not named or named["name"] not in project.page_names():
            return _guarded(text).split("\n")
        page = pages.read_page(named["name"])
        self.md.measured_page = page  # type: ignore[attr-defined]
        woven = pages.Page(page.name, page.path, text)
        found = recording.recordings(page.name)
        after = {f.end_line: self._outputs(i, found) for i, f in enumerate(woven.cells)}
        formulas = {f.line: f for f in woven.fences if f.language == "math"}
        asked = dict(
            zip((f.line for f in woven.fences if f.language == "estimate"), estimates.estimates(page), strict=False)
        )
        out: list[str] = []
        at = 0
        while at < len(woven.lines):
            number = at + 1
            if number in formulas:
                fence = formulas[number]
                out += ["", self._stash(formula(fence.body)), ""]
                at = fence.end_line
                continue
            if number in asked:
                out += ["", *_estimate(asked[number]), ""]
                at = next(f.end_line for f in woven.fences if f.line == number)
                continue
            out.append(woven.lines[at])
            at += 1
            if number in after:
                end = _annotations_end(woven.lines, at)
                out += woven.lines[at:end]
                at = end
                out += ["", after[number], ""] if after[number] else []
        text = "\n".join(out)
        text = _QUESTIONS.sub(lambda _: self._questions(page), text)
        text = _VERDICT.sub(lambda m: _verdict_head(m, page), text)
        text = _guarded(text)
        if not page.name.endswith("/index"):
            text += "\n\n" + self._stash(_own_cards(page)) + "\n"
        if woven.cells:
            text += "\n\n" + self._stash(predicted_and_measured(page, found) + show_recorded(page, found)) + "\n"
        return text.splitlines()

    def _stash(self, markup: str) -> str:
        return self.md.htmlStash.store(markup)

    def _outputs(self, index: int, found: list[Recording]) -> str:
        shown = show_outputs(index, found)
        return self._stash(shown) if shown else ""

    def _questions(self, topic_page: Page) -> str:
        """Every question of the topic: its answer, number and verdicts, pulled from its page."""
        parts = []
        for name in question_order(topic_page.name.split("/")[0]):
            page = pages.read_page(name)
            slug = name.split("/")[1]
            question, _ = page.heading
            head = [f'<section class="ma-question" id="q-{slug.replace("_", "-")}" markdown>', ""]
            body = [f"### [{question}]({slug}.md)", "", quote(page.answer, name, f"{slug}.md"), ""]
            for verdict in page.verdicts:
                body += [f'!!! verdict {verdict.status} "{verdict.title}"', ""]
                body += [f"    {row}" if row else "" for row in quote(verdict.body, name, f"{slug}.md").splitlines()]
                body += [""]
            parts += [*head, *body, "</section>", ""]
        return "\n".join(parts) if parts else "No question has a page yet."


class Evidence(Treeprocessor):
    """After attributes are on their elements: what backs each number, and whether its claim fails."""

    def run(self, root: Element) -> None:
        page: Page | None = getattr(self.md, "measured_page", None)
        _name_verdicts(root, page)
        for element in root.iter("strong"):
            element.attrib = {key: value.replace(_POWER, "**") for key, value in element.items()}
            kinds = set((element.get("class") or "").split()) & set(MARK_KINDS)
            if not kinds:
                continue
            kind = kinds.pop()
            source_page = element.attrib.pop("data-from", None)
            owner = pages.read_page(source_page) if source_page else page
            if kind == "cited":
                _cite(element)
            elif kind == "claim" and owner:
                _back_claim(element, owner)
            elif kind == "m":
                element.set("title", f"measured: {element.attrib.pop('data-m', '').partition(':')[0]}")
            elif kind == "exact":
                element.set("title", f"derived: {element.attrib.pop('data-expr', '').partition(':')[0]}")
        if page and not page.name.endswith("/index"):
            layers.mark(root, page)


class Finish(Postprocessor):
    """Inline formulas that arithmatex marked, as MathML (no JavaScript, no font), and code without idle markup."""

    def run(self, text: str) -> str:
        def one(match: re.Match[str]) -> str:
            from latex2mathml.converter import convert

            return convert(html.unescape(match[2]), display="block" if match[1] == "div" else "inline")

        text = re.sub(r'<(span|div) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', one, text, flags=re.S)
        # Names, points and operators are a third of a page's bytes in markup; code reads as calmly without.
        text = text.replace("<pre><span></span><code>", "<pre><code>")
        return re.sub(r'<span class="(?:n|nb|nn|bp|p|o|w)">([^<]*)</span>', r"\1", text)


class MeasuredExtension(Extension):
    """Registers the three steps; needs attr_list, admonition, superfences, snippets and md_in_html beside it."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Weave(md), "measured-weave", 28)  # snippets 32, whitespace 30, fences 25
        md.treeprocessors.register(Evidence(md), "measured-evidence", 6)  # attr_list 8, links checked 5
        md.postprocessors.register(Finish(md), "measured-finish", -10)


def makeExtension(**options: Any) -> MeasuredExtension:
    """Entry point of Python-Markdown."""
    return MeasuredExtension(**options)


def question_order(topic: str | None = None) -> list[str]:
    """Questions of a topic, or of all, as they are shown: most asked first, then as the navigation has them."""
    names = project.question_names(topic)
    configuration = project.root() / "mkdocs.yml"
    navigation = configuration.read_text(encoding="utf-8") if configuration.is_file() else ""

    def rank(name: str) -> tuple[int, int, str]:
        asked = pages.read_page(name).meta.get("asked")
        place = navigation.find(f" {name}.md")
        # A page just begun has no rank, and perhaps no place.
        return asked if isinstance(asked, int) else 9, place if place >= 0 else len(navigation), name

    return sorted(names, key=rank)


def verdict_broken(verdict: pages.Verdict) -> bool:
    """Whether a claim that a verdict names fails on its page's primary recording, or is gone."""
    for _, claim_id in verdict.evidence:
        claim = claims.find(claim_id)
        if claim is None or claim_state(claim) == "fails":
            return True
    return False


def verdict_id(statement: str) -> str:
    """The anchor of a statement's verdict on its question's page."""
    return f"verdict-{statement.lower().replace('.', '-')}"


def claim_state(claim: pages.Claim) -> str:
    """`holds`, `fails`, `not-applicable` or `not-recorded`, on the primary recording."""
    have = recording.primary(claim.page)
    if have is None:
        return "not-recorded"
    if set(claim.needs.split()) - set(have.about.get("machine", {}).get("capabilities", [])):
        return "not-applicable"
    try:
        return "holds" if claims.holds(claim, have.values) else "fails"
    except ExpressionError:
        return "fails"


def _verdict_head(match: re.Match[str], page: Page) -> str:
    title = re.search(r'"([^"]*)"', match["rest"])
    statement = title[1] if title else ""
    known = [v for v in page.verdicts if v.title == statement]
    if not known and page.name.endswith("/index"):
        topic = page.name.split("/")[0]
        known = [v for n in project.question_names(topic) for v in pages.read_page(n).verdicts if v.title == statement]
    broken = any(verdict_broken(v) for v in known)
    return f"!!! verdict {match['status']}{' broken' if broken else ''}{match['rest']}"


def _name_verdicts(root: Element, page: Page | None) -> None:
    """A page's own verdicts get their anchors; those that it pulls have them where they stand."""
    own = {verdict.statement for verdict in page.verdicts} if page else set()
    for element in root.iter("div"):
        if {"admonition", "verdict"} <= set((element.get("class") or "").split()):
            statement = "".join(element.itertext()).strip().partition(":")[0]
            if statement in own:
                element.set("id", verdict_id(statement))


def _guarded(text: str) -> str:
    """A power in an attribute would end or begin bold text for Markdown, and take the marks behind it along."""
    return pages.MARK.sub(lambda m: f"**{m['text']}**{{{m['attrs'].replace('**', _POWER)}}}", text)


def _back_claim(element: Element, owner: Page) -> None:
    check = element.attrib.pop("data-check", "")  # its title says it
    own_id = element.get("id")
    claim = next((c for c in owner.claims if (c.id == own_id if own_id else c.check == check)), None)
    if claim is None:
        return
    state = claim_state(claim)
    if state != "holds":
        element.set("class", f"{element.get('class')} {state}")
    have = recording.primary(owner.name)
    names = sorted(claims.expression.names(check)) if have else []
    recorded = ", ".join(f"{n} = {have.values[n]:,.6g}" for n in names if have and n in have.values)
    element.set("title", f"{_CLASS_MEANS.get(claim.value_class, '')}; checked: {check}; recorded: {recorded}; {state}")


def _cite(element: Element) -> None:
    """A cited number becomes a link to where it stands."""
    entry = sources.load().get(element.get("data-src", ""))
    if not entry:
        return
    link = Element("a", {"href": entry["link"], "title": f"cited: {entry['where']}"})
    link.text, element.text = element.text, ""
    link.extend(list(element))
    for child in list(element):
        element.remove(child)
    element.append(link)


def formula(body: str) -> str:
    """A `math` fence's TeX as a block of MathML: no JavaScript, no font."""
    from latex2mathml.converter import convert

    formula = convert(body.strip(), display="block")
    return f'<div class="ma-formula" tabindex="0" role="group" aria-label="formula">{formula}</div>'


def _estimate(estimate: Estimate) -> list[str]:
    """An estimate with one draw of its inputs, always the same; the solution is folded."""
    drawn = estimates.draw(estimate, estimates.example_seed(estimate))
    formula, worked = estimates.solution(estimate, drawn.values)
    return [
        f'<div class="admonition estimate" id="{estimate.id}" markdown>',
        '<p class="admonition-title">Estimate</p>',
        "",
        drawn.question,
        "",
        '??? note "Solution"',
        "",
        f"    {formula}",
        "",
        f"    {worked}",
        "",
        "</div>",
    ]


def _own_cards(page: Page) -> str:
    """The way to a page's own cards: a link that the quiz's script turns into a round on the page itself."""
    count = len(cards.cards_of(page.name))
    address = "../" * page.name.count("/") + f"quiz.html?page={page.name}"
    return (
        f'<div class="ma-own-cards"><a class="md-button" href="{address}" data-page="{page.name}">'
        f"Drill this page’s {count} cards</a></div>"
    )


def _annotations_end(lines: list[str], at: int) -> int:
    """Where the annotation list that must stay right under its fence ends; `at` where there is none."""
    start = at
    while start < len(lines) and not lines[start].strip():
        start += 1
    if start == len(lines) or not re.match(r"1\. ", lines[start]):
        return at
    end = start
    while end < len(lines) and (not lines[end].strip() or re.match(r" {3,}|\t|\d+\. ", lines[end])):
        end += 1
    return end

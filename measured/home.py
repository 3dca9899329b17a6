"""The home page's generated parts: one example from statement to verdict, the topics, what was checked and when."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable

from measured import claims, project, recording, weave
from measured.page import read_page
from measured.pulled import PullError
from measured.quotes import quote, sentence_of
from measured.verdict_list import all_said, badge, topic_title

STATUS_WORDS = {
    "refuted": "refuted",
    "holds-if": "hold under a named condition",
    "not-measured": "not measured",
    "holds": "hold",
}
CLASS_WORDS = {
    "D": "exact counts and equalities",
    "T": "values within a derived tolerance",
    "R": "ratios and orders of times, bounded on one side",
    "H": "values of one device, shown and not required",
}


def example(statement: str) -> str:
    """What `<!-- pull example STATEMENT -->` becomes: what people say, what was recorded, what follows.

    Raises:
        PullError: No verdict is on that statement, or nothing was recorded for its first claim.
    """
    said = next((each for each in all_said() if each.verdict.statement == statement), None)
    claim = claims.find(said.verdict.evidence[0][1]) if said and said.verdict.evidence else None
    have = recording.primary(claim.page) if claim else None
    if said is None or claim is None or have is None:
        raise PullError(f"no verdict on {statement!r} rests on a recorded claim: name another statement")
    values = "".join(
        f"<tr><th scope='row'><code>{name}</code></th><td>{html.escape(shown(have.values[name]))}</td></tr>"
        for name in sorted(claims.expression.names(claim.check))
    )
    evidence = quote(sentence_of(read_page(claim.page), claim.id), claim.page, f"{claim.page}.md")
    return "\n".join(
        [
            '<dl class="ma-example" markdown>',
            "<dt>People say</dt>",
            f'<dd class="ma-example-said" markdown="span">“{said.text}”</dd>',
            "<dt>Measured</dt>",
            '<dd markdown="block">',
            "",
            evidence,
            "",
            f'<table class="ma-values"><caption>Recorded on {html.escape(have.label)}, {have.about["recorded"]}'
            f"</caption>{values}</table>",
            "",
            "</dd>",
            "<dt>Verdict</dt>",
            '<dd markdown="block">',
            "",
            f"{badge(said.verdict)} {said.why}",
            "",
            f"[See the code, its output, and when it is false]({said.address})",
            "",
            "</dd>",
            "</dl>",
        ]
    )


def topics(_argument: str = "") -> str:
    """What `<!-- pull topics -->` becomes: each topic, how many questions it has, and its most asked."""
    parts = ['<div class="ma-topics" markdown>', ""]
    for topic in project.TOPICS:
        names = weave.question_order(topic)
        if not names:
            continue
        parts += [
            f"-   [**{topic_title(topic)}**]({topic}/index.md) · {len(names)} question{'s' * (len(names) != 1)}",
            "",
            f"    {read_page(f'{topic}/index').meta.get('description', '')}",
            "",
            f"    Most asked: [{read_page(names[0]).heading[0]}]({names[0]}.md)",
            "",
        ]
    return "\n".join([*parts, "</div>"])


def checked(_argument: str = "") -> str:
    """What `<!-- pull checked -->` becomes: claims by class, verdicts by word, and when the last was recorded."""
    every = claims.all_claims()
    states = Counter(weave.claim_state(claim) for claim in every)
    by_class = Counter(claim.value_class for claim in every)
    said = Counter(each.verdict.status for each in all_said())
    have = [found for name in project.page_names() if (found := recording.primary(name))]
    dates = [found.about["recorded"] for found in have]
    rows = [
        (
            "Claims",
            f"{len(every):,}",
            _listed(f"{by_class[k]:,} {w} ({k})" for k, w in CLASS_WORDS.items() if by_class[k]),
        ),
        ("Hold", f"{states['holds']:,}", f"on the machine recorded; {_rest(states)}"),
        (
            "Statements",
            f"{sum(said.values()):,}",
            _listed(f"[{said[s]:,} {words}](verdicts.md#{s})" for s, words in STATUS_WORDS.items() if said[s]),
        ),
    ]
    if have:
        newest = max(have, key=lambda found: found.about["recorded"])
        rows.append(
            ("Recorded", max(dates), f"the newest page, on {html.escape(newest.label)}; the oldest {min(dates)}")
        )
    parts = ['<dl class="ma-checked" markdown>']
    for name, number, words in rows:
        parts += [f"<dt>{name}</dt>", f'<dd markdown="span"><strong>{number}</strong>: {words}</dd>']
    return "\n".join([*parts, "</dl>"])


def shown(value: float | int) -> str:
    """A recorded value as a claim's evidence shows it."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts)


def _rest(states: Counter[str]) -> str:
    absent, failing = states["not-applicable"] + states["not-recorded"], states["fails"]
    told = [f"{absent:,} {'needs' if absent == 1 else 'need'} hardware that it lacks"] if absent else []
    told += [f"{failing:,} {'fails' if failing == 1 else 'fail'}"] if failing else []
    return _listed(told) or "none fails"

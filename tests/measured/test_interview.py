"""The mock interview: key points and follow-ups from the pages, the follow-up that is chosen, a round, its report."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from measured import mock, project
from measured.cli import app
from measured.interview import LEVELS, Followup, Interview, choose, followups, interviews, sentences
from measured.page import parse, read_page

START = datetime(2026, 1, 1, 9, tzinfo=UTC)
FOLLOWUPS = (
    Followup("junior", "Easy?", "Easily.", (0, 5, 0)),
    Followup("senior", "Harder?", "By far.", (7, 0, 0)),
    Followup("senior", "Hard?", "Hardly.", (0, 0, 9)),
    Followup("staff", "Deep?", "Deeply.", (0, 0, 0)),
)


def interview(name: str, asked: int = 1) -> Interview:
    return Interview(
        f"kv_cache/{name}", "kv_cache", asked, f"What of {name}?", ("First.", "Second.", "Third."), FOLLOWUPS
    )


# ---- What the pages say ------------------------------------------------------------------------------------


def test_every_page_can_be_asked() -> None:
    found = {each.page: each for each in interviews()}
    assert list(found) == sorted(project.question_names(), key=lambda name: read_page(name).meta["asked"])
    for name, each in found.items():
        source = read_page(name).source
        assert len(each.points) >= 2 and len(each.followups) >= 1, name
        assert len(each.followups) == len(re.findall(r"^- \*\*(?:Junior|Senior|Staff)\.\*\*", source, re.M)), name
        texts = [*each.points, *(text for f in each.followups for text in (f.question, f.answer))]
        assert not [text for text in texts if re.search(r"\{ ?\.|\]\(|\n|^\W*$", text)], name
        assert all(point.rstrip("*”’)").endswith((".", "?", "!")) for point in each.points), name
        assert all(f.question.rstrip("”’)").endswith("?") for f in each.followups), name
        assert all(len(f.points) == len(each.points) for f in each.followups), name
        assert any(any(f.points) for f in each.followups), name


def test_points_say_the_whole_answer() -> None:
    from measured.cards import plain

    for each in interviews():
        assert " ".join(each.points) == " ".join(plain(read_page(each.page).answer).split())


def test_topics_are_asked_alone() -> None:
    assert {each.topic for each in interviews(["kv_cache"])} == {"kv_cache"}
    alone = {each.page: each for each in interviews(["kv_cache"])}
    assert alone.items() <= {each.page: each for each in interviews()}.items()


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("It is **1.2×** as fast. In FP32 it is not.", ["It is **1.2×** as fast.", "In FP32 it is not."]),
        ("Some, e.g. INT4, lose. Cf. Table one, i.e. Here.", ["Some, e.g. INT4, lose.", "Cf. Table one, i.e. Here."]),
        ("With $a. B$ it\nholds. $x$ is free.", ["With $a. B$ it holds.", "$x$ is free."]),
        ("Call `a. B`. **Bold** too!", ["Call `a. B`.", "**Bold** too!"]),
        ("A few GB/s. PCIe wins.", ["A few GB/s.", "PCIe wins."]),
        ("He said “no.” Then: why? **None.** 3 remain.", ["He said “no.”", "Then: why?", "**None.**", "3 remain."]),
        ("llama.cpp does. version 2.0 does not", ["llama.cpp does. version 2.0 does not"]),
        ("", []),
    ],
)
def test_sentences(text: str, cut: list[str]) -> None:
    assert sentences(text) == cut


@given(st.lists(st.sampled_from(["One is.", "$a. B$ is!", "Is 1.5 GB?", "e.g. This.", "**Two.**", "`x. Y` is."])))
def test_sentences_lose_nothing(parts: list[str]) -> None:
    assert " ".join(sentences("\n".join(parts))) == " ".join(parts)


def test_followups_are_read_over_lines(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "# Why?\n\n## Follow-ups\n\n- **Junior.** Is `a?` [a\n  link](#x)? Yes,\n  **2 GB**{ .m data-m=x }.\n"
        "- **Staff.** Called “so?” Why? Because.\n- **Chief.** Who? I.\n- Untagged? Yes.\n"
        "- **Senior.** No question.\n\n"
        '!!! say "Say"\n\n    “Words.”\n\n## Sources\n\n- **Junior.** Not here? No.\n',
        encoding="utf-8",
    )
    assert followups(parse("page", path)) == [
        Followup("junior", "Is `a?` a link?", "Yes, **2 GB**."),
        Followup("staff", "Called “so?”", "Why? Because."),
    ]


# ---- Which follow-up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missed", "question"),
    [((), "Deep?"), ((0,), "Harder?"), ((2,), "Hard?"), ((1,), "Hard?"), ((0, 1), "Easy?"), ((0, 1, 2), "Easy?")],
)
def test_what_was_missed_chooses(missed: tuple[int, ...], question: str) -> None:
    """The second point is in no senior's follow-up: there what was made decides."""
    assert choose(FOLLOWUPS, missed, [at for at in range(3) if at not in missed]).question == question


def test_half_missed_is_not_most() -> None:
    assert choose(FOLLOWUPS, (0,), (1,)).level == "senior"


@pytest.mark.parametrize(
    ("levels", "missed", "level"),
    [
        ("junior staff", (0,), "junior"),
        ("senior staff", (0, 1, 2), "senior"),
        ("junior senior", (), "senior"),
        ("junior", (), "junior"),
    ],
)
def test_the_nearest_level_stands_in(levels: str, missed: tuple[int, ...], level: str) -> None:
    known = [each for each in FOLLOWUPS if each.level in levels.split()]
    assert choose(known, missed, [at for at in range(3) if at not in missed]).level == level


def test_equals_are_asked_in_the_pages_order() -> None:
    same = [Followup("junior", name, "", (1, 1)) for name in ("first?", "second?")]
    assert choose(same, (0, 1), ()).question == "first?" and choose(same[::-1], (0, 1), ()).question == "second?"


def test_a_missed_point_leads_to_what_it_is_about() -> None:
    by_page = {each.page: each for each in interviews()}
    mla = by_page["kv_cache/heads_mha_gqa_mqa"]
    last = len(mla.points) - 1
    assert choose(mla.followups, (last,), range(last)).question.startswith("Your GQA model decodes no faster")


# ---- A round in a terminal ---------------------------------------------------------------------------------


class Reader:
    """Says these words, each after so many seconds; running out of them stops."""

    def __init__(self, *words: str, seconds: int = 30, terminal: bool = False) -> None:
        self.words: Iterator[str] = iter(words)
        self.now, self.seconds = START, seconds
        self.out = Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)

    def ask(self, prompt: str) -> str:
        self.out.print(prompt)
        self.now += timedelta(seconds=self.seconds)
        return next(self.words, "q")

    def play(self, *asked: Interview, minutes: int = 20, ask: Callable[[str], str] | None = None) -> list[mock.Asked]:
        return mock.run(asked, minutes, self.out, ask or self.ask, clock=lambda: self.now)

    @property
    def shown(self) -> str:
        assert isinstance(self.out.file, io.StringIO)
        return self.out.file.getvalue()


def test_a_question_from_end_to_end() -> None:
    reader = Reader("", "2 3", "", "y")
    (done,) = reader.play(interview("a"))
    assert (done.seconds, done.ticked, done.missed, done.held) == (30, (1, 2), (0,), True)
    assert done.followup is FOLLOWUPS[1]
    order = ["What of a?", "min to speak", "1 First.", "numbers of the points", "senior", "Harder?", "By far."]
    assert sorted(order, key=reader.shown.index) == order


def test_nothing_is_shown_before_its_time() -> None:
    for words, hidden in (((), "First."), (("",), "Harder?"), (("", "2 3"), "By far.")):
        reader = Reader(*words)
        reader.play(interview("a"))
        assert hidden not in reader.shown


def test_what_is_not_an_answer_is_told_and_asked_again() -> None:
    reader = Reader("", "4", "0", "one", "-1", "²", "1, 1 3", "", "maybe", "", "n")
    (done,) = reader.play(interview("a"))
    assert done.ticked == (0, 2) and done.held is False
    assert reader.shown.count("numbers from 1 to 3") == 5 and reader.shown.count("y if you had it") == 2


def test_no_point_made() -> None:
    (done,) = Reader("", "", "", "n").play(interview("a"))
    assert done.missed == (0, 1, 2) and done.followup is FOLLOWUPS[0]


def test_the_time_ends_after_the_question_at_hand() -> None:
    words = ["", "1", "", "y"] * 3
    assert len(Reader(*words, seconds=30).play(*map(interview, "abc"), minutes=3)) == 2
    assert len(Reader(*words, seconds=15).play(*map(interview, "abc"), minutes=3)) == 3


@pytest.mark.parametrize("stop", ["q", "Q ", KeyboardInterrupt, EOFError])
@pytest.mark.parametrize(("before", "kept"), [(0, 1), (1, 1), (2, 2), (3, 2)])
def test_stopping_keeps_what_was_done(stop: str | type[BaseException], before: int, kept: int) -> None:
    reader = Reader("", "1 2 3", "", "y", *["", "1", ""][:before])
    left = 4 + before

    def ask(prompt: str) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            if isinstance(stop, str):
                return stop
            raise stop
        return reader.ask(prompt)

    done = reader.play(interview("a"), interview("b"), ask=ask)
    assert len(done) == kept and done[0].held is True
    assert done[-1].held is None or kept == 1


def test_a_terminal_counts_down() -> None:
    reader = Reader("", "1", "", "y", seconds=150, terminal=True)
    (done,) = reader.play(interview("a"))
    assert "2:00 left" in reader.shown and "0:30 over time" in reader.shown and done.seconds == 150
    assert Reader("q", terminal=True).play(interview("a")) == []


def test_equally_asked_come_in_another_order_each_time() -> None:
    asked = [interview(name, 1 + (name > "f")) for name in "abcdefghij"]
    orders = {tuple(each.page[-1] for each in mock.shuffled(asked, Random(seed))) for seed in range(5)}
    assert len(orders) == 5 and all(sorted(order[:6]) == list("abcdef") for order in orders)


# ---- Its report --------------------------------------------------------------------------------------------


def test_the_report_says_how_it_went() -> None:
    done = [
        mock.Asked(interview("a"), 61, (0, 1, 2), FOLLOWUPS[3], True),
        mock.Asked(interview("b"), 9, (1,), FOLLOWUPS[0], False),
        mock.Asked(interview("c|d"), 30, (0, 1)),
    ]
    assert mock.report(done, START, START + timedelta(minutes=7)) == (
        "# Mock interview, 2026-01-01 09:00\n\n"
        "3 questions in 7 min; 6 of 9 points made; 1 of 2 follow-ups held.\n\n"
        "| question | points | seconds | follow-up | held |\n|---|---|---|---|---|\n"
        "| What of a? | 3 of 3 | 61 | staff | yes |\n"
        "| What of b? | 1 of 3 | 9 | junior | no |\n"
        "| What of c\\|d? | 2 of 3 | 30 | – | – |\n\n"
        "## Reread docs/kv_cache/b.md\n\n- First.\n- Third.\n- Easy? Easily.\n\n"
        "## Reread docs/kv_cache/c|d.md\n\n- Third.\n"
    )


def test_a_report_of_nothing() -> None:
    assert mock.report([], START, START).endswith("No question was answered.\n")


def test_a_terminal_shows_the_report() -> None:
    out = Console(file=io.StringIO(), width=100)
    mock.show(mock.report([mock.Asked(interview("a"), 61, (0,), FOLLOWUPS[0], False)], START, START), out)
    assert isinstance(out.file, io.StringIO)
    assert re.search(r"What of a\? +1 of 3 +61 +junior +no", out.file.getvalue())


# ---- The command -------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    def call(*arguments: str, said: str = "") -> tuple[int, str]:
        done = CliRunner().invoke(app, ["quiz", *arguments], input=said)
        return done.exit_code, " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.output).split())

    return call


def test_the_command_interviews_and_writes_a_report(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    path = tmp_path / "folder" / "mock.md"
    code, shown = run("kv_cache", "--mock", "--tonight", "5", "--report", str(path), said="\n1 2\n\ny\nq\n")
    text = path.read_text(encoding="utf-8")
    assert code == 0 and "1 question in 0 min" in shown and text.startswith("# Mock interview, ")
    assert len(re.findall(r"^\| .* \| 2 of \d \| \d+ \| \w+ \| yes \|$", text, re.M)) == 1
    assert not (tmp_path / "data").exists(), "a mock interview touches no schedule"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--mock", "--progress"], "leave out --progress"),
        (["--mock", "--export", "x.json", "--import", "y.json"], "leave out --export and --import"),
        (["--report", "x.md"], "add --mock"),
        (["--mock", "--report", "."], "is a directory"),
        (["--mock", "kv_cash"], "kv_cache"),
    ],
)
def test_what_does_not_fit_is_refused(run: Callable[..., tuple[int, str]], arguments: list[str], told: str) -> None:
    code, shown = run(*arguments)
    assert code == 2 and told in shown


def test_a_report_that_cannot_be_written_was_shown(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, shown = run("--mock", "--report", str(tmp_path / "file" / "mock.md"), said="q\n")
    assert code == 1 and "No question was answered" in shown and "could not be written" in shown


def test_levels_are_those_of_the_pages() -> None:
    assert {f.level for each in interviews() for f in each.followups} == set(LEVELS)

"""The deck, imported by Anki's own library: new, unchanged, changed; schedules stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from measured import anki as decks
from measured import recording
from measured.cards import all_cards

CARDS = [card for card in all_cards() if recording.primary(card.page)]


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Any]:
    from anki.collection import Collection

    opened = Collection(str(tmp_path / "collection.anki2"))
    yield opened
    opened.close()


def imported(collection: Any, path: Path) -> tuple[int, int, int]:
    """How many notes an import made, changed and left alone."""
    from anki.collection import ImportAnkiPackageOptions, ImportAnkiPackageRequest

    options = ImportAnkiPackageOptions(merge_notetypes=True, with_scheduling=False)
    log = collection.import_anki_package(ImportAnkiPackageRequest(package_path=str(path), options=options)).log
    return len(log.new), len(log.updated), len(log.duplicate)


def test_importing_again_updates_and_keeps_schedules(
    collection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deck.apkg"
    assert decks.build(path, cards=CARDS) == len(CARDS)
    assert imported(collection, path) == (len(CARDS), 0, 0)
    first = collection.find_cards(f'"note:Measured Answers" tag:{CARDS[0].kind}')[0]
    card = collection.get_card(first)
    card.start_timer()
    collection.sched.answerCard(card, 3)
    kept = collection.get_card(first)
    assert (kept.reps, kept.queue) != (0, 0)
    decks.build(path, cards=CARDS)
    assert imported(collection, path) == (0, 0, len(CARDS))
    changed = [dataclasses.replace(CARDS[0], front="Asked in other words?"), *CARDS[1:]]
    before = decks.modified
    monkeypatch.setattr(decks, "modified", lambda card: before(card) + 60 * (card == changed[0]))
    decks.build(path, cards=changed)
    assert imported(collection, path) == (0, 1, len(CARDS) - 1)
    assert len(collection.find_notes('"Asked in other words?"')) == 1
    again = collection.get_card(first)
    assert (again.reps, again.due, again.queue) == (kept.reps, kept.due, kept.queue)


def test_decks_and_tags_follow_topic_and_importance(collection: Any, tmp_path: Path) -> None:
    decks.build(tmp_path / "deck.apkg", cards=CARDS)
    imported(collection, tmp_path / "deck.apkg")
    for topic, title in decks.TITLES.items():
        wanted = sum(card.topic == topic for card in CARDS)
        assert len(collection.find_notes(f'"deck:Measured Answers::{title}"')) == wanted > 0
        assert len(collection.find_notes(f"tag:{topic}")) == wanted
    often = sum(card.asked == 1 for card in CARDS)
    assert len(collection.find_notes("tag:asked-1")) == often > 0


def test_a_note_is_as_old_as_its_page() -> None:
    page = decks.project.page_path(CARDS[0].page)
    assert decks.modified(CARDS[0]) >= page.stat().st_mtime
    assert len({decks.modified(card) for card in CARDS}) > 1


def test_guids_hang_on_the_id_alone() -> None:
    assert len({decks.guid(card) for card in CARDS}) == len(CARDS)
    assert decks.guid(dataclasses.replace(CARDS[0], front="?", back="!")) == decks.guid(CARDS[0])


def test_formulas_and_charts_are_on_the_backs() -> None:
    assert decks._html("costs $\\ln V$ nats") == "<p>costs \\(\\ln V\\) nats</p>"
    assert not [card.id for card in CARDS for side in decks._sides(card) if "$" in side]
    backs = [decks._sides(card)[1] for card in CARDS if card.kind == "recall"]
    assert sum("\\[" in back for back in backs) > len(backs) / 2
    charts = [back for back in backs if "<svg" in back]
    assert len(charts) > len(backs) / 2 and all("currentColor" in back for back in charts)


def test_a_falsified_step_is_told_on_the_back_alone() -> None:
    for card in CARDS:
        if card.kind == "spot":
            front, back = decks._sides(card)
            assert front != decks._html(f"{card.front}\n\n{decks._listed(list(card.steps))}")
            assert "it is <strong>" in back and decks._sides(card) == (front, back)


def test_a_deck_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deck.apkg"
    path.write_bytes(b"old")

    def broken(self: object, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("genanki.Package.write_to_file", broken)
    with pytest.raises(OSError, match="disk full"):
        decks.build(path, cards=CARDS[:1])
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["deck.apkg"]

"""`measured build`: what the site needs beside its pages, fresh, and nothing left over."""

from __future__ import annotations

import json

from measured.build import build

NAME = "kv_cache/sample"


def test_notebooks_claims_and_cards_are_written_once(mini) -> None:
    docs = mini.root / "docs"
    written = {p.relative_to(docs).as_posix() for p in build()}
    assert written == {
        "assets/quiz/cards.json",
        "assets/quiz/interview.json",
        "claims.json",
        "notebooks/here/kv_cache/index.ipynb",
        f"notebooks/here/{NAME}.ipynb",
        f"notebooks/one-thread/{NAME}.ipynb",
    }
    assert (docs / "notebooks" / "here" / f"{NAME}.ipynb").read_bytes() == mini.book_path.read_bytes()
    assert build() == []


def test_they_follow_pages_and_recordings(mini) -> None:
    build()
    docs = mini.root / "docs"
    book = mini.book()
    book.metadata["measured"]["seconds"] = 99
    mini.write_book(book)
    assert [p.name for p in build()] == ["sample.ipynb"]
    mini.replace("**counted alike**", "**counted the same**")
    assert [p.name for p in build()] == ["claims.json"]
    sentences = [c["claim"] for c in json.loads((docs / "claims.json").read_text(encoding="utf-8"))["claims"]]
    assert "counted the same" in sentences


def test_notebooks_without_a_recording_are_removed(mini) -> None:
    build()
    folder = mini.root / "docs" / "notebooks"
    orphan = folder / "gone" / "kv_cache" / "sample.ipynb"
    orphan.parent.mkdir(parents=True)
    orphan.write_text("{}", encoding="utf-8")
    (mini.root / "recordings" / "one-thread" / f"{NAME}.ipynb").unlink()
    removed = {p.relative_to(folder).as_posix() for p in build() if p.suffix == ".ipynb"}
    assert removed == {"gone/kv_cache/sample.ipynb", f"one-thread/{NAME}.ipynb"}
    assert sorted(p.name for p in folder.iterdir()) == ["here"]

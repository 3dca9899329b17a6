"""`measured build`: what the site needs beside its pages, fresh, and nothing left over."""

from __future__ import annotations

import json

from measured.build import build, claims_document

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
    sentences = [c["sentence"] for c in json.loads((docs / "claims.json").read_text(encoding="utf-8"))["claims"]]
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


def test_claims_document_says_everything_that_is_checked(mini) -> None:
    document = claims_document()
    assert document["version"] == 1 and document["primary"] == "here"
    found = {c["id"]: c for c in document["claims"]}
    assert set(found) == {"topic-boxes", "box-bytes", "box-alike", "box-mean", "box-speed", "box-step", "box-cuda"}
    assert found["box-speed"] == {
        "id": "box-speed",
        "page": NAME,
        "sentence": "at least 2×",
        "class": "R",
        "check": "speed_ratio >= 2",
        "null": 1.0,
        "needs": [],
        "tolerance": "",
        "state": "holds",
        "values": {"here": {"speed_ratio": 4.0}, "one-thread": {"speed_ratio": 4.0}},
    }
    assert found["box-cuda"]["needs"] == ["cuda"] and found["box-cuda"]["state"] == "not-applicable"
    assert found["topic-boxes"]["values"] == {"here": {"topic_count": 6}}


def test_values_of_earlier_code_leave_the_claims(mini) -> None:
    path = mini.root / "recordings" / "one-thread" / f"{NAME}.ipynb"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('tally.py": "', 'tally.py": "0'), encoding="utf-8")
    found = {c["id"]: c["values"] for c in claims_document()["claims"]}
    assert found["box-bytes"] == {"here": {"box_bytes": 120}}

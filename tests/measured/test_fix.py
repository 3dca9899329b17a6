"""`measured fix`: numbers that the recording has moved past are rewritten, claims are not."""

from __future__ import annotations

import pytest

from measured.fix import fix_page

NAME = "kv_cache/sample"


def test_a_fresh_page_is_left_alone(mini) -> None:
    before = mini.page_path.stat().st_mtime_ns
    assert fix_page(mini.page()) == [] and mini.page_path.stat().st_mtime_ns == before


def test_measured_derived_and_cited_numbers_are_rewritten(mini) -> None:
    fresh = mini.page_path.read_text(encoding="utf-8")
    edits = [
        ('**120 bytes**{ .m data-m="box', '**1 byte**{ .m data-m="box', "1 byte", "120 bytes"),
        ("**0.12×**{ .exact", "**9.99×**{ .exact", "9.99×", "0.12×"),
        ("**1,024 bytes**{ .cited", "**7 s**{ .cited", "7 s", "1,024 bytes"),
    ]
    lines = [mini.replace(old, new) for old, new, _, _ in edits]
    found = fix_page(mini.page())
    assert sorted(found) == sorted((ln, wrong, right) for ln, (_, _, wrong, right) in zip(lines, edits, strict=True))
    assert mini.page_path.read_text(encoding="utf-8") == fresh
    assert mini.problems() == []


def test_two_numbers_on_one_line_and_nothing_else_of_it(mini) -> None:
    line = mini.append(
        'A **1 byte**{ .m data-m="box_bytes:.0f bytes" }, **bold**, **x**{ .big }, `**2**` and '
        '**3 rows**{ .m data-m="rows_count:.0f rows" }, '
        '**0.13 kB**{ .m data-m="box_bytes:.2f kB" }'
    )
    assert fix_page(mini.page()) == [(line, "1 byte", "120 bytes"), (line, "0.13 kB", "0.12 kB")]
    assert "**bold**, **x**{ .big }, `**2**` and **3 rows**{" in mini.page_path.read_text(encoding="utf-8")


def test_claims_and_fences_are_for_people(mini) -> None:
    mini.replace("**120 bytes**{ .claim #box-bytes", "**121 bytes**{ .claim #box-bytes")
    mini.append('```console\n**1 byte**{ .m data-m="box_bytes:.0f bytes" }\n```')
    assert fix_page(mini.page()) == []
    assert any("says “121 bytes”" in p for p in mini.problems())


@pytest.mark.parametrize(
    ("mark", "problem"),
    [
        ('**1 byte**{ .m data-m="lost_bytes:.0f bytes" }', "lost_bytes is not recorded"),
        ('**1 s**{ .m data-m="box_bytes:.0f s" }', "cannot be shown in 's'"),
        ('**three**{ .exact data-expr="box_bytes / 60" }', "box_bytes / 60 is 2.0"),
        ('**1 s**{ .cited data-src="lost" }', "no entry 'lost'"),
    ],
)
def test_what_cannot_be_rewritten_writes_nothing(mini, mark: str, problem: str) -> None:
    mini.replace('**120 bytes**{ .m data-m="box', '**1 byte**{ .m data-m="box')
    line = mini.append(f"It is {mark}.")
    before = mini.page_path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=rf"docs/kv_cache/sample\.md:{line}: .*{problem}"):
        fix_page(mini.page())
    assert mini.page_path.read_text(encoding="utf-8") == before


def test_without_a_recording_nothing_measured_can_be_fixed(mini) -> None:
    mini.book_path.unlink()
    with pytest.raises(ValueError, match="box_bytes is not recorded"):
        fix_page(mini.page())

"""Pages as source: what is found in them, and on which line."""

from __future__ import annotations

from pathlib import Path

import pytest

from measured import page as pages
from measured.page import Page, PageError

TEXT = """\
---
title: A title
asked: 2
---

# How big? { data-page="kv_cache/how_big" }

A size of **12 bytes**{ .m data-m="x_bytes:,.0f bytes" } and **bold** words, **so**{ .big } to say.
<!-- **13 bytes**{ .m data-m="x_bytes:,.0f bytes" } is
hidden --> **at least 2×**{ .claim #c-one data-class=R data-null=1.0 data-check="y_ratio >= 2" data-needs="cuda vnni" }

!!! answer "In 30 seconds"

    Say **12 bytes**{ .claim #c-two data-class=D data-check="x_bytes == 12" }.

    And more.

```python title="one" hl_lines="1"
x = 1  # **14 bytes**{ .m data-m="x_bytes:d" }
```

    ```python
    display = "only"
    ```

~~~console
$ ls
~~~

!!! verdict holds-if "S1.2b: some words"

    Sentence.

    - **Holds:** [one](#c-one), [two](other.md#c-two)
    - Flips: [three](../kv_cache/third.md#c-three)
"""


@pytest.fixture
def page() -> Page:
    return Page("kv_cache/how_big", Path("docs/kv_cache/how_big.md"), TEXT)


def test_front_matter_and_heading(page: Page) -> None:
    assert page.meta == {"title": "A title", "asked": 2}
    assert page.front_matter == "---\ntitle: A title\nasked: 2\n---\n\n"
    assert page.heading == ("How big?", {"data-page": "kv_cache/how_big"})


def test_a_page_without_front_matter() -> None:
    page = Page("x", Path("x.md"), "# Title\n\nText.\n")
    assert (page.meta, page.front_matter, page.heading[0]) == ({}, "", "Title")


def test_marks_have_kind_text_and_line(page: Page) -> None:
    found = [(m.kind, m.text, m.line, m.id) for m in page.marks]
    assert found == [
        ("m", "12 bytes", 8, ""),
        ("claim", "at least 2×", 10, "c-one"),
        ("claim", "12 bytes", 14, "c-two"),
    ]


def test_claims_have_their_attributes(page: Page) -> None:
    one, two = page.claims
    assert (one.id, one.value_class, one.check, one.null, one.needs) == ("c-one", "R", "y_ratio >= 2", 1.0, "cuda vnni")
    assert one.gated and two.gated and two.null is None
    assert {c.page for c in page.claims} == {"kv_cache/how_big"}


def test_a_null_that_is_no_number_is_none() -> None:
    text = '# T\n\n**2×**{ .claim #a data-class=R data-null=one data-check="a_ratio >= 2" }\n'
    assert Page("x", Path("x.md"), text).claims[0].null is None


def test_only_python_fences_at_the_margin_are_cells(page: Page) -> None:
    assert [(f.language, f.executed, f.line, f.end_line) for f in page.fences] == [
        ("python", True, 18, 20),
        ("python", False, 22, 24),
        ("console", False, 26, 28),
    ]
    assert [f.options for f in page.cells] == [{"title": "one", "hl_lines": "1"}]


@pytest.mark.parametrize("language", ["py", "console", "text", "python3x", "math", "Python"])
def test_other_fences_are_no_cells(language: str) -> None:
    page = Page("x", Path("x.md"), f"# T\n\n```{language}\nx = 1\n```\n")
    assert len(page.fences) == 1 and page.cells == []


def test_a_fence_that_never_ends_is_named_with_its_line() -> None:
    with pytest.raises(PageError, match=r"x\.md:3: this fence is never closed") as error:
        _ = Page("x", Path("x.md"), "# T\n\n```python\nx = 1\n").fences
    assert error.value.line == 3 and "```" in error.value.mend


def test_a_fence_inside_a_longer_fence_is_its_text() -> None:
    page = Page("x", Path("x.md"), "# T\n\n````markdown\n```python\nx = 1\n```\n````\n")
    assert [f.language for f in page.fences] == ["markdown"]


def test_answer_and_verdict(page: Page) -> None:
    assert page.answer.startswith("Say **12 bytes**") and page.answer.endswith("And more.")
    (verdict,) = page.verdicts
    assert (verdict.status, verdict.statement, verdict.line) == ("holds-if", "S1.2b", 30)
    assert verdict.evidence == (("holds", "c-one"), ("holds", "c-two"), ("flips", "c-three"))


def test_expand_takes_the_named_section_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEASURED_ROOT", str(tmp_path))
    source = "import os\n\n# --8<-- [start:one]\ndef one():\n    return 1\n\n\n# --8<-- [end:one]\nx = 2\n"
    (tmp_path / "s.py").write_text(source, encoding="utf-8")
    page = Page("x", tmp_path / "docs" / "x.md", "")
    assert pages.expand('a = 0\n--8<-- "s.py:one"\nb = 1', page, 1) == "a = 0\ndef one():\n    return 1\nb = 1"
    assert pages.expand('--8<-- "s.py"', page, 1) == source.rstrip("\n")
    with pytest.raises(PageError, match=r"docs/x\.md:7: s\.py has no section 'two'\n.*its sections: one"):
        pages.expand('--8<-- "s.py:two"', page, 7)
    with pytest.raises(PageError, match=r"docs/x\.md:7: include of t\.py, which does not exist"):
        pages.expand('--8<-- "t.py:one"', page, 7)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    path.write_text("# One\n", encoding="utf-8")
    assert pages.parse("x", path).heading[0] == "One"
    path.write_text("# Another\n", encoding="utf-8")
    assert pages.parse("x", path).heading[0] == "Another"

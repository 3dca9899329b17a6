"""Layers of a question page, on trees as Python-Markdown makes them, and the glossary that they lead to."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import fromstring, tostring

import pytest

from measured import glossary, layers
from measured.page import Page

GLOSSARY = """
GQA:
  also: [grouped-query attention]
  means: Heads that share.
  page: kv_cache/other
KV cache:
  means: What is kept.
  page: kv_cache/sample
ridge:
  means: Where both meet.
  page: kv_cache/other
"""


@pytest.fixture
def terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A glossary of a project with two questions."""
    path = tmp_path / "docs" / "glossary.yml"
    path.parent.mkdir()
    path.write_text(GLOSSARY, encoding="utf-8")
    monkeypatch.setattr("measured.project.root", lambda: tmp_path)
    monkeypatch.setattr("measured.project.question_names", lambda topic=None: ["kv_cache/other", "kv_cache/sample"])
    return path


def marked(body: str, front: str = "asked: 1") -> str:
    """A page's tree after its layers are marked, as text."""
    root = fromstring(f"<div>{body}</div>")
    layers.mark(root, Page("kv_cache/sample", Path("sample.md"), f"---\n{front}\n---\n"))
    return tostring(root, encoding="unicode")


def test_the_bar_links_the_layers_that_are_there(terms: Path) -> None:
    text = marked(
        "<h1>Why?</h1><p>Because.</p><div class='admonition answer'><p>So.</p></div>"
        "<h2>The formula</h2><h2>Follow-ups</h2><div class='admonition say'><p>Thus.</p></div>"
    )
    assert '<p id="in-10-seconds">Because.</p><nav' in text
    links = ["in-10-seconds", "in-30-seconds", "the-formula", "follow-ups", "say"]
    assert [part.partition('"')[0] for part in text.split('href="#')[1:]] == links
    assert '<div class="admonition answer" id="in-30-seconds">' in text


def test_other_wordings_follow_the_headline(terms: Path) -> None:
    text = marked("<h1>Why?</h1><p>Because.</p>", 'also: [how come, "what for: really"]')
    assert '</p><p class="ma-also">Also asked as: how come; what for: really.</p><nav' in text
    assert "ma-also" not in marked("<h1>Why?</h1><p>Because.</p>")


@pytest.mark.parametrize("listed", ["how come", "[70]", "{a: b}"])
def test_wordings_that_are_no_list_of_texts_are_refused(terms: Path, listed: str) -> None:
    with pytest.raises(ValueError, match=r"sample\.md: `also` is a list of texts"):
        marked("<h1>Why?</h1><p>Because.</p>", f"also: {listed}")


def test_a_follow_up_is_tagged_by_its_level(terms: Path) -> None:
    text = marked(
        "<ul><li><strong>Junior.</strong> Why?</li><li><p><strong>Staff.</strong> How?</p></li>"
        "<li><strong>Other.</strong> No.</li><li>Not <strong>Senior.</strong> here.</li></ul>"
    )
    assert '<li id="follow-up-1"><a class="ma-level junior" href="#follow-up-1">Junior</a> Why?</li>' in text
    assert '<li id="follow-up-2"><p><a class="ma-level staff" href="#follow-up-2">Staff</a> How?</p></li>' in text
    assert "<strong>Other.</strong>" in text and "<strong>Senior.</strong>" in text


def test_a_term_is_linked_once_and_only_in_prose(terms: Path) -> None:
    text = marked(
        "<h2>GQA</h2><p>Not <code>GQA</code>, <a href='x'>GQA</a>, GQAs or <strong class='m'>GQA</strong>, "
        "<em>but</em> grouped-query attention and the ridge; then GQA and ridge again.</p>"
    )
    link = '<a class="ma-term" href="../glossary.md#{}">{}</a>'
    assert (
        f"<em>but</em> {link.format('gqa', 'grouped-query attention')} and the {link.format('ridge', 'ridge')};" in text
    )
    assert text.count("ma-term") == 2 and text.endswith("then GQA and ridge again.</p></div>")


def test_a_term_is_not_linked_on_its_own_page(terms: Path) -> None:
    assert "ma-term" not in marked("<p>The KV cache.</p>")


def test_the_glossary_lists_every_term_with_its_question(terms: Path) -> None:
    text = glossary.pull("")
    assert text.count("<dt ") == text.count("<dd ") == 3
    assert '<dt id="gqa">GQA <span class="ma-spelling">grouped-query attention</span></dt>' in text
    assert "What is kept. [The question](kv_cache/sample.md)" in text


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("MQA:\n  means: Shared.\n", "MQA: write `means:`"),
        ("MQA:\n  means: Shared.\n  page: kv_cache/gone\n", "no question page 'kv_cache/gone'"),
        ("MQA:\n  also: [GQA]\n  means: Shared.\n  page: kv_cache/other\n", "'GQA' stands for GQA and for MQA"),
    ],
)
def test_an_entry_that_is_not_whole_is_refused(terms: Path, entry: str, told: str) -> None:
    terms.write_text(GLOSSARY + entry, encoding="utf-8")
    with pytest.raises(glossary.GlossaryError, match=told):
        glossary.load()


def test_a_project_without_a_glossary_links_nothing(terms: Path) -> None:
    terms.unlink()
    assert glossary.load() == [] and "ma-term" not in marked("<p>GQA</p>")


def test_the_projects_own_glossary_is_whole() -> None:
    assert len(glossary.load()) > 40
    assert [
        t.name
        for t in glossary.load()
        if not t.means.endswith(".") or any(c.isdigit() for c in t.means.replace("E5M2", ""))
    ] == []

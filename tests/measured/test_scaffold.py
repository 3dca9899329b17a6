"""`measured new`: three files and an entry, all failing until they are filled in."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from measured import checks, project
from measured.page import read_page
from measured.scaffold import ScaffoldError, new_question

ROOT = Path(__file__).resolve().parents[2]
QUESTION = 'What does "MLA" store?'


def test_a_new_question_has_page_snippet_test_and_a_place_in_the_navigation(mini) -> None:
    written = new_question("kv_cache", "latent_attention", QUESTION)
    assert [p.relative_to(project.root()).as_posix() for p in written] == [
        "docs/kv_cache/latent_attention.md",
        "snippets/kv_cache/latent_attention.py",
        "tests/kv_cache/test_latent_attention.py",
    ]
    assert read_page("kv_cache/latent_attention").heading == (QUESTION, {"data-page": "kv_cache/latent_attention"})
    entries = yaml.safe_load((mini.root / "mkdocs.yml").read_text(encoding="utf-8"))["nav"][1]["KV cache"]
    assert entries == ["kv_cache/index.md", "kv_cache/sample.md", "kv_cache/latent_attention.md"]


def test_all_three_fail_until_they_are_filled_in(mini) -> None:
    page, snippet, test = new_question("kv_cache", "latent_attention", QUESTION)
    problems = [str(p) for p in checks.check_page(read_page("kv_cache/latent_attention"))]
    assert problems and all(p.startswith("docs/kv_cache/latent_attention.md:") for p in problems)
    spec = importlib.util.spec_from_file_location("fresh", snippet)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for function in (module.measure, module.control):
        with pytest.raises(NotImplementedError):
            function(small=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=mini.root,
        env={**os.environ, "PYTHONPATH": str(mini.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout
    assert page.is_file()


def test_its_sections_are_those_of_a_page_that_is_done(mini) -> None:
    """A newcomer fills in a form: no layer of a finished page is missing in it."""
    page, *_ = new_question("kv_cache", "latent_attention", QUESTION)
    real = (ROOT / "docs/kv_cache/bytes_per_token.md").read_text(encoding="utf-8")
    started = page.read_text(encoding="utf-8")
    layers = [
        "## The formula",
        "## On a whiteboard",
        "## Measured",
        "## When is it false?",
        "## Follow-ups",
        "## Sources",
    ]
    layers += ['!!! answer "In 30 seconds"', '!!! say "Say"', '!!! dont-say "Don\'t say"']
    assert [(layer in real, layer in started) for layer in layers] == [(True, True)] * len(layers)


@pytest.mark.parametrize(
    "slug", ["Latent", "latent-attention", "latent attention", "1st", "_x", "x_", "a__b", "", "index"]
)
def test_a_malformed_slug_writes_nothing(mini, slug: str) -> None:
    before = sorted(p for p in mini.root.rglob("*") if p.is_file())
    with pytest.raises(ScaffoldError, match="lower_snake_case"):
        new_question("kv_cache", slug, QUESTION)
    assert sorted(p for p in mini.root.rglob("*") if p.is_file()) == before


def test_no_question_no_topic_no_overwriting(mini) -> None:
    navigation = (mini.root / "mkdocs.yml").read_text(encoding="utf-8")
    with pytest.raises(ScaffoldError, match="is no question"):
        new_question("kv_cache", "latent_attention", "What MLA stores")
    with pytest.raises(project.UnknownNameError, match="no topic 'kvcache'; nearest: kv_cache"):
        new_question("kvcache", "latent_attention", QUESTION)
    with pytest.raises(ScaffoldError, match=r"docs/kv_cache/sample\.md exists already; nothing was written"):
        new_question("kv_cache", "sample", QUESTION)
    with pytest.raises(ScaffoldError, match=r"mkdocs\.yml has no entry of embeddings"):
        new_question("embeddings", "fresh", QUESTION)
    assert not (mini.root / "docs" / "embeddings").exists()
    assert (mini.root / "mkdocs.yml").read_text(encoding="utf-8") == navigation


def test_a_test_that_exists_alone_is_not_overwritten(mini) -> None:
    path = mini.root / "tests" / "kv_cache" / "test_fresh.py"
    path.parent.mkdir(parents=True)
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(ScaffoldError, match="exists already"):
        new_question("kv_cache", "fresh", QUESTION)
    assert path.read_text() == "mine" and not (mini.root / "docs" / "kv_cache" / "fresh.md").exists()

"""What the repository's host reads: workflows, forms, citation. Checked by linters that need no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "site.yml"
FORM = ROOT / ".github" / "ISSUE_TEMPLATE" / "wrong-number.yml"


def tool(*command: str) -> subprocess.CompletedProcess[str]:
    """A linter of the project's environment."""
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT)


def schema(name: str, *files: Path) -> subprocess.CompletedProcess[str]:
    return tool("check_jsonschema", "--builtin-schema", f"vendor.{name}", *map(str, files))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("github-workflows", WORKFLOW),
        ("github-issue-forms", FORM),
        ("github-issue-config", FORM.with_name("config.yml")),
        ("citation-file-format", ROOT / "CITATION.cff"),
    ],
)
def test_each_file_fits_its_hosts_schema(name: str, path: Path, tmp_path: Path) -> None:
    done = schema(name, path)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / path.name
    broken.write_text(path.read_text(encoding="utf-8") + "\nno-such-key: 1\n", encoding="utf-8")
    if name != "citation-file-format":  # which allows keys of one's own
        assert schema(name, broken).returncode != 0


def zizmor(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("zizmor")
    return subprocess.run([str(program), "--offline", str(path)], capture_output=True, text=True)


def test_the_workflow_gives_nobody_more_than_it_needs(tmp_path: Path) -> None:
    done = zizmor(ROOT / ".github")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    loose = re.sub(r"@[0-9a-f]{40}", "@main", WORKFLOW.read_text(encoding="utf-8"))
    (folder / "site.yml").write_text(loose, encoding="utf-8")
    assert "unpinned-uses" in zizmor(tmp_path / ".github").stdout


def test_the_workflow_runs_what_everybody_runs_and_publishes_only_what_passed() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    assert ".ci/run" in [step.get("run") for step in jobs["test"]["steps"]]
    assert jobs["build"]["needs"] == "test" and jobs["deploy"]["needs"] == "build"
    assert "GPU_MACHINE != ''" in jobs["gpu"]["if"] and "workflow_dispatch" in jobs["gpu"]["if"]


def test_what_the_publisher_adds_reaches_the_site(tmp_path: Path) -> None:
    """The step's own script, with `make` taken out, writes a configuration that MkDocs reads."""
    steps = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["build"]["steps"]
    (script,) = [step["run"] for step in steps if "INHERIT" in step.get("run", "")]
    addresses = {"SITE": "https://example.org/answers", "REPOSITORY": "https://example.org/code"}
    shell = ["bash", "-c", f"make() {{ :; }}\n{script}"]
    subprocess.run(shell, cwd=tmp_path, env={**os.environ, **addresses}, check=True)
    text = (tmp_path / "published.yml").read_text(encoding="utf-8")
    published = ROOT / ".published-test.yml"
    try:
        published.write_text(text, encoding="utf-8")
        found = load_config(str(published))
    finally:
        published.unlink(missing_ok=True)
    assert found["site_url"] == "https://example.org/answers/" and found["site_name"] == "Measured Answers"
    assert found["extra"]["issues_url"] == "https://example.org/code/issues/new"
    assert found["extra"]["generator"] is False  # what mkdocs.yml says stays


def test_the_form_asks_for_what_a_page_fills_in() -> None:
    form = yaml.safe_load(FORM.read_text(encoding="utf-8"))
    fields = {part["id"] for part in form["body"] if "id" in part}
    script = (ROOT / "docs" / "assets" / "evidence.js").read_text(encoding="utf-8")
    assert {"page", "claim", "machine", "versions"} <= fields
    assert FORM.name in script
    for name in ("page", "claim", "machine", "versions"):
        assert re.search(rf"\b{name}\b", script), name


def test_one_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    heads = re.findall(r"^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert cited == version
    assert heads[0] == "Unreleased" or heads[0] == version

"""A model file is used only when it is the pinned one, and the refusal says how to mend it."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from snippets.models import files

pytestmark = pytest.mark.models

CONTENT = b"weights, as it were"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that must never be imported, with one file in it, and an empty cache."""
    folder = tmp_path / "site" / "fake_model_package"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    (folder / "data" / "weights.bin").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("MEASURED_CACHE", str(tmp_path / "cache"))
    return folder


def find() -> Path:
    return files.packaged_file("fake_model_package", "data/weights.bin", SHA256)


def test_found_without_an_import_and_noted(package: Path) -> None:
    assert find().read_bytes() == CONTENT
    assert "fake_model_package" not in sys.modules
    assert files.loaded()["fake_model_package/data/weights.bin"] == SHA256


def test_wrong_hash_is_refused_with_the_mend(package: Path) -> None:
    with pytest.raises(files.ModelFileError) as refusal:
        files.packaged_file("fake_model_package", "data/weights.bin", "0" * 64)
    message = str(refusal.value)
    assert SHA256 in message and "0" * 64 in message and "make models" in message


def test_changed_file_is_refused_although_verified_before(package: Path) -> None:
    path = find()
    before = path.stat()
    path.write_bytes(CONTENT[::-1])  # the same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    with pytest.raises(files.ModelFileError, match="make models"):
        find()


@pytest.mark.parametrize(
    ("name", "relative", "what"),
    [
        ("no_such_package_here", "x", "not installed"),
        ("fake_model_package", "data/other.bin", "no such file"),
    ],
)
def test_missing_is_refused_with_the_mend(package: Path, name: str, relative: str, what: str) -> None:
    with pytest.raises(files.ModelFileError, match=rf"{what}.*make models"):
        files.packaged_file(name, relative, SHA256)


def test_hashed_once_only(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find()
    monkeypatch.setattr(files, "file_sha256", lambda path: pytest.fail("hashed again"))
    assert find().read_bytes() == CONTENT


def test_cache_that_cannot_be_written_costs_only_the_stamp(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("MEASURED_CACHE", str(tmp_path / "a-file"))
    assert find().read_bytes() == CONTENT


def test_cache_folder_without_the_variable_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEASURED_CACHE", raising=False)
    assert files.cache_folder().name == "measured-answers"


def test_installed_packages_are_the_pinned_ones() -> None:
    text = (Path(files.__file__).parent / "packages.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = [re.fullmatch(r"([\w-]+)==([\d.]+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert len(pins) == 5 and all(pins), "every line pins one version and one hash"
    for pin in pins:
        assert pin is not None and version(pin[1]) == pin[2]

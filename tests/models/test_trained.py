"""Trainings: they learn, repeat, round when asked; their files are kept, made once, and made again when broken."""

from __future__ import annotations

import copy
import threading
import time
from pathlib import Path

import pytest
import torch

from snippets.models import trained
from snippets.models.decoder import Decoder, initialize
from snippets.models.files import ModelFileError
from snippets.models.language_loss import window_nats
from snippets.models.rounding import Scheme, matrices, quantize_decoder, round_to_grid
from snippets.models.shapes import Geometry

pytestmark = pytest.mark.models
SCHEME = Scheme(2)


def fresh(geometry: Geometry) -> Decoder:
    decoder = Decoder(geometry)
    initialize(decoder, seed=0)
    return decoder


@pytest.fixture
def pattern(tiny: Geometry) -> torch.Tensor:
    """Text in which each token decides the next: (tokens,)."""
    order = torch.randperm(tiny.vocabulary, generator=torch.Generator().manual_seed(0))
    return order.repeat(20)


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and trainings of three steps."""
    monkeypatch.setenv("MEASURED_CACHE", str(tmp_path))
    monkeypatch.setattr(trained, "STEPS", 3)
    monkeypatch.setattr(trained, "FURTHER_STEPS", 2)
    monkeypatch.setattr(trained, "FEW_STEPS", 1)
    monkeypatch.setattr(trained, "BATCH", 2)
    monkeypatch.setattr(trained, "LENGTH", 8)
    return tmp_path / "trained"


def test_a_gradient_passes_a_rounding_as_if_there_were_none() -> None:
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), requires_grad=True)
    rounded = trained.StraightThrough(SCHEME)(weight)
    upstream = torch.arange(18.0).view(3, 6)
    rounded.backward(upstream)
    assert torch.allclose(rounded, round_to_grid(weight, SCHEME), atol=1e-6) and not torch.allclose(rounded, weight)
    assert weight.grad is not None and torch.equal(weight.grad, upstream)


def test_training_learns_and_repeats(tiny: Geometry, pattern: torch.Tensor) -> None:
    one, again, other = fresh(tiny), fresh(tiny), fresh(tiny)
    losses = trained.train(one, pattern, 40, seed=1, rate=1e-2, batch=4, length=12)
    assert len(losses) == 40 and losses[-1] < losses[0] - 1.0
    assert trained.train(again, pattern, 40, seed=1, rate=1e-2, batch=4, length=12) == losses
    assert trained.train(other, pattern, 40, seed=2, rate=1e-2, batch=4, length=12) != losses
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert one.lm_head.weight is one.embed_tokens.weight


def test_quantization_aware_training_beats_rounding_afterwards(tiny: Geometry, pattern: torch.Tensor) -> None:
    base = fresh(tiny)
    trained.train(base, pattern, 60, seed=1, rate=1e-2, batch=4, length=12)
    plain, aware = copy.deepcopy(base), copy.deepcopy(base)
    trained.train(plain, pattern, 40, seed=2, rate=3e-3, batch=4, length=12)
    trained.train(aware, pattern, 40, seed=2, rate=3e-3, batch=4, length=12, scheme=SCHEME)
    assert {name for name, _ in aware.named_parameters()} == {name for name, _ in plain.named_parameters()}
    assert all(not torch.allclose(w, round_to_grid(w, SCHEME)) for w in matrices(aware).values()), "latent weights stay"
    windows = pattern[:240].view(4, 60)
    after, before = (window_nats(quantize_decoder(d, SCHEME), windows).mean() for d in (plain, aware))
    assert before < after - 0.1


def test_a_grid_that_columns_do_not_divide_by_is_refused(tiny: Geometry, pattern: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="do not divide"):
        trained.train(fresh(tiny), pattern, 1, seed=0, batch=1, length=4, scheme=Scheme(4, group=64))


def test_vocabulary_and_split() -> None:
    train, held_out = trained.corpus()
    tokenizer = trained.tokenizer()
    assert tokenizer.get_vocab_size() == trained.VOCABULARY
    assert train.max() < trained.VOCABULARY and len(train) > 900_000 and 50_000 < len(held_out) < 100_000
    hostile = "naïve 日本語\t\n  two  spaces 😀 I'm\x00"
    assert tokenizer.decode(tokenizer.encode(hostile).ids) == hostile
    assert "Applause" not in tokenizer.decode(train[:50_000].tolist())
    assert trained.held_out_windows(3, 50).shape == (3, 50)
    assert not set(trained.HELD_OUT_YEARS) & set(trained.TRAINED_YEARS)


def test_sizes() -> None:
    counts = {name: sum(p.numel() for p in Decoder(g).parameters()) for name, g in trained.GEOMETRIES.items()}
    assert 250_000 < counts["tiny"] < 350_000 and 1_100_000 < counts["small"] < 1_300_000


def test_other_texts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "TRAINED_YEARS", range(1941, 2021))
    with pytest.raises(ModelFileError, match=r"pinned is .*make models"):
        trained.trained_texts.__wrapped__()


def test_trained_once_then_read(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained.decoder("tiny", seed=1).state_dict()
    files = sorted(path.name for path in short.glob("tiny-1-*"))
    assert [name.split(".", 1)[1] for name in files] == ["safetensors", "safetensors.lock", "sha256"]
    monkeypatch.setattr(trained, "train", lambda *a, **k: pytest.fail("trained again"))
    second = trained.decoder("tiny", seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_broken_file_is_made_again(short: Path) -> None:
    first = trained.decoder("tiny").state_dict()
    (path,) = short.glob("tiny-0-*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes(40))
    assert all(torch.equal(first[n], t) for n, t in trained.decoder("tiny").state_dict().items())
    assert path.read_bytes() == whole


def test_seed_steps_and_scheme_each_have_a_file(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained.continued(0).state_dict()
    aware = trained.continued(0, trained.FURTHER_SCHEMES[2]).state_dict()
    name = "layers.0.mlp.down_proj.weight"
    assert not torch.equal(plain[name], aware[name])
    assert not torch.equal(plain[name], trained.decoder("small").state_dict()[name])
    monkeypatch.setattr(trained, "FURTHER_STEPS", 1)
    trained.continued(0)
    assert len(list(short.glob("small-0-*.safetensors"))) == 4


def test_two_who_want_the_same_file_make_it_once(short: Path) -> None:
    made = []

    def write(path: Path) -> None:
        made.append(path)
        time.sleep(0.3)
        path.write_text("x")

    threads = [threading.Thread(target=trained._kept, args=("slow", ".txt", 1, write)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(list(short.glob("slow-*.txt"))) == 1
    assert not list(short.glob("*.tmp"))


def test_prepare_trains_every_seed_size_and_scheme(short: Path) -> None:
    trained.prepare()
    kinds = len(trained.GEOMETRIES) + 1 + 1 + len(trained.FURTHER_SCHEMES)  # few steps, and plainly further
    assert len(list(short.glob("*.safetensors"))) == len(trained.SEEDS) * kinds

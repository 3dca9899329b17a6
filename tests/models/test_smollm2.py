"""Our SmolLM2 is transformers' SmolLM2: weights, logits, tokens. Its cache mends itself."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from snippets.models import files, smollm2
from snippets.models.decoder import Decoder, KVCache, generate
from snippets.models.shapes import Geometry

pytestmark = pytest.mark.models

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time there was a small",
    "Water boils at 100 degrees because",
    "<|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n",
    "1, 2, 4, 8, 16,",
)
HOSTILE = (
    "",
    " ",
    "plain words",
    "  two spaces before, and two after  ",
    "tabs\tand\r\nline ends\n\n\n\nfour",
    "def f(x):\n        return {'a': x[1:-1], \"b\": lambda y: y**2}  # comment\n",
    "👩‍👩‍👧‍👦 family, 🇫🇷 flag, 👍🏽 skin",
    "e\u0301 combining, n\u0303, Z\u0351\u036b\u0343\u036a\u0302a\u0353",
    "שלום مرحبا 你好 こんにちは नमस्ते",
    "it's we'll THEY'RE don'T ’curly’",
    "x²³¼Ⅷ四",
    "zero\u200bwidth\u00a0no-break\u2009thin\ufeffbom",
    "<|im_start|>user\nhi<|im_end|><|endoftext|> <|not_special|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    " " * 77 + "x",
    "https://example.org/a?b=c&d=%20#frag",
)  # fmt: skip
DIGITS = ("1234567890", "in 1999, 3.14159 and 1,000,000", "a1b22c333", "007", "x = 10", "٣٤٥ १२३ ５６")
SPACES_BEFORE_A_DIGIT = ("a  1", "   42", "\t\t7", "x =     10")


def ids(text: str) -> torch.Tensor:
    return smollm2.encode(text)


def test_weights_are_transformers_own(theirs: Any) -> None:
    expected = dict(theirs.state_dict())
    assert torch.equal(expected.pop("lm_head.weight"), expected["model.embed_tokens.weight"])
    state = smollm2.load_state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert sum(tensor.numel() for tensor in state.values()) == 134_515_008


def test_state_in_bfloat16_is_the_rounded_one() -> None:
    exact, rounded = smollm2.load_state(), smollm2.load_state(torch.bfloat16)
    name = "model.layers.29.self_attn.k_proj.weight"
    assert torch.equal(exact[name].to(torch.bfloat16), rounded[name])


@pytest.fixture(scope="module")
def greedy(ours: Decoder, theirs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """64 tokens of ours behind each prompt (6, 64), and ours and their logits where they were chosen."""
    prompts = torch.cat([ids(prompt)[:, :5] for prompt in PROMPTS])
    tokens = generate(ours, prompts, 64)
    sequence = torch.cat((prompts, tokens), dim=1)[:, :-1]
    with torch.inference_mode():
        return tokens, ours(sequence)[:, -64:], theirs(sequence).logits[:, -64:]


@pytest.mark.parametrize("row", range(len(PROMPTS)), ids=lambda row: repr(PROMPTS[row]))
def test_logits_and_64_greedy_tokens_equal_transformers(greedy: tuple[torch.Tensor, ...], row: int) -> None:
    tokens, computed, expected = (each[row] for each in greedy)
    assert (computed - expected).abs().max() < 1e-3
    best, second = expected.topk(2).values.T
    assert (best - second).min() > 1e-3, "a tie proves nothing: take another prompt"
    # Their choice at each position, given ours before it: by induction, their own greedy continuation.
    assert torch.equal(expected.argmax(-1), tokens)
    assert tokens.unique().numel() > 5


def test_their_generate_agrees(ours: Decoder, theirs: Any) -> None:
    prompt = ids(PROMPTS[0])
    with torch.inference_mode():
        expected = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False,
            min_new_tokens=16, pad_token_id=2, eos_token_id=2,
        )[:, prompt.shape[1] :]  # fmt: skip
    assert torch.equal(generate(ours, prompt, 16), expected)


def test_cached_equals_uncached_and_batched_equals_single(ours: Decoder) -> None:
    rows = torch.cat([ids(prompt)[:, :5] for prompt in PROMPTS[:3]])
    cache = KVCache(ours.geometry, 3, 5, torch.float32)
    with torch.inference_mode():
        whole = ours(rows)
        stepped = torch.cat([ours(rows[:, i : i + 1], cache) for i in range(5)], dim=1)
        single = torch.cat([ours(rows[i : i + 1]) for i in range(3)])
    assert torch.allclose(stepped, whole, atol=1e-3)
    assert torch.allclose(single, whole, atol=1e-3)
    assert whole.std() > 1


@pytest.mark.parametrize("text", HOSTILE + DIGITS, ids=repr)
def test_tokenizer_equals_transformers(their_tokenizer: Any, text: str) -> None:
    assert smollm2.tokenizer().encode(text).ids == their_tokenizer(text).input_ids


@pytest.fixture(scope="module")
def rule() -> Any:
    """The model's tokenization written out: llama.cpp's two patterns for "smollm", then merges by rank."""
    import regex

    model = json.loads(smollm2.tokenizer().to_str())["model"]
    vocabulary, ranks = model["vocab"], {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    gpt2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}

    def encode(text: str) -> list[int]:
        found: list[int] = []
        for piece in regex.findall(r"\p{N}|[^\p{N}]+", text):
            for word in gpt2.findall(piece):
                parts = [letters[byte] for byte in word.encode() if letters[byte] in vocabulary]
                while True:
                    mergeable = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
                    if not mergeable:
                        break
                    _, i = min(mergeable)
                    parts[i : i + 2] = [parts[i] + parts[i + 1]]
                found += [vocabulary[part] for part in parts]
        return found

    return encode


@pytest.mark.parametrize(
    "text", [text for text in HOSTILE + DIGITS + SPACES_BEFORE_A_DIGIT if "<|" not in text], ids=repr
)
def test_tokenizer_equals_the_written_rule(rule: Any, text: str) -> None:
    assert smollm2.tokenizer().encode(text).ids == rule(text)


@pytest.mark.parametrize("text", SPACES_BEFORE_A_DIGIT, ids=repr)
def test_transformers_leaves_out_the_split_at_digits(their_tokenizer: Any, text: str) -> None:
    """Why the two are not simply required to be equal: when this fails, transformers has mended it."""
    assert smollm2.tokenizer().encode(text).ids != their_tokenizer(text).input_ids


def test_digits_stand_alone_and_text_comes_back() -> None:
    tokenizer = smollm2.tokenizer()
    assert tokenizer.encode("x = 1234").tokens[-4:] == ["1", "2", "3", "4"]
    for text in HOSTILE + DIGITS + SPACES_BEFORE_A_DIGIT:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_bytes_that_the_vocabulary_lacks_vanish() -> None:
    tokenizer = smollm2.tokenizer()
    assert tokenizer.decode(tokenizer.encode("a\x04b").ids) == "ab"


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own with a conversion whose weights were cut off, and what a killed one leaves."""
    whole = smollm2._converted()
    folder = tmp_path / whole.name
    (folder / "killed.tmp").mkdir(parents=True)
    (folder / "stale.tmp").write_bytes(b"half a file")
    shutil.copy(whole / "manifest.json", folder)
    shutil.copy(whole / "tokenizer.json", folder)
    with (whole / "weights.safetensors").open("rb") as file:
        (folder / "weights.safetensors").write_bytes(file.read(1_000_000))
    monkeypatch.setenv("MEASURED_CACHE", str(tmp_path))
    return folder


def test_half_written_cache_is_built_again(broken: Path, ours: Decoder) -> None:
    state = smollm2.load_state()
    assert torch.equal(state["model.embed_tokens.weight"], ours.embed_tokens.weight)
    assert len(state) == 272
    names = {path.name for path in broken.iterdir()}
    assert names == {"manifest.json", "tokenizer.json", "weights.safetensors"}


@pytest.mark.parametrize("harm", ["no manifest", "torn manifest", "other tokenizer", "no weights"])
def test_any_harm_calls_for_one_conversion(broken: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    whole = broken.parent / "whole"
    whole.mkdir()
    (whole / "weights.safetensors").write_bytes(b"w")
    (whole / "tokenizer.json").write_text("{}")
    hashes = {path.name: files.file_sha256(path) for path in whole.iterdir()}
    (whole / "manifest.json").write_text(json.dumps(hashes))
    conversions: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        conversions.append(source)
        shutil.copytree(whole, folder, dirs_exist_ok=True)

    monkeypatch.setattr(smollm2, "convert", convert)
    convert(Path(), broken)
    assert smollm2._converted() == broken and len(conversions) == 1, "an intact cache is left alone"
    match harm:
        case "no manifest":
            (broken / "manifest.json").unlink()
        case "torn manifest":
            (broken / "manifest.json").write_text('{"weights')
        case "other tokenizer":
            (broken / "tokenizer.json").write_text("{ }")
        case "no weights":
            (broken / "weights.safetensors").unlink()
    assert smollm2._converted() == broken
    assert len(conversions) == 2 and conversions[1].name == smollm2._FILE


def test_another_llama_loads_from_a_path(tmp_path: Path, tiny: Geometry, llama: Any) -> None:
    model = llama(tiny)
    model.save_pretrained(tmp_path)
    loaded = smollm2.decoder(model=str(tmp_path))
    assert (loaded.geometry.head_dim, loaded.geometry.rope_theta) == (tiny.head_dim, tiny.rope_theta)
    prompt = torch.arange(10).view(2, 5)
    with torch.inference_mode():
        assert torch.allclose(loaded(prompt), model(prompt).logits, atol=1e-5)
    assert len(files.loaded()[f"model {tmp_path}"]) == 64


def test_a_readers_model_of_the_same_shape_takes_the_packaged_ones_place(
    tmp_path: Path, tiny: Geometry, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = llama(tiny)
    theirs.save_pretrained(tmp_path)
    monkeypatch.setenv(smollm2.READERS_MODEL, str(tmp_path))
    with pytest.raises(ValueError, match="pages are written for the shape of SmolLM2-135M"):
        smollm2.load_state()
    monkeypatch.setattr(smollm2, "GEOMETRY", tiny)
    state = smollm2.load_state(torch.bfloat16)
    assert torch.equal(state["model.norm.weight"], theirs.model.norm.weight.bfloat16())
    assert torch.equal(smollm2.decoder().state_dict()["layers.1.mlp.up_proj.weight"], state_of(theirs, 1))


def state_of(theirs: Any, layer: int) -> torch.Tensor:
    return theirs.state_dict()[f"model.layers.{layer}.mlp.up_proj.weight"]


def test_what_is_no_plain_llama_is_refused(tiny: Geometry, llama: Any) -> None:
    scaled = llama(tiny, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}).config
    for config in (transformers.MistralConfig(), scaled):
        with pytest.raises(ValueError, match="other: only a plain Llama"):
            smollm2.geometry_of(config, name="other")

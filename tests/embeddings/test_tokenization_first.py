"""What happens before the lookup? By hand against the library on random and hostile texts, each trap shown wrong."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Mapping

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import DecodeStream

from snippets.embeddings import tokenization_first as snippet
from snippets.models import minilm, smollm2
from tests.small import measured_small

SENTENCE = "low lower lowest newer newest wider, new low; 2026 it's low\n\n  low"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return smollm2.tokenizer()


@pytest.fixture(scope="module")
def bpe(tokenizer: Tokenizer) -> snippet.Bpe:
    return snippet.bpe_of(tokenizer)


@pytest.fixture(scope="module")
def measured() -> Mapping[str, float]:
    return measured_small("embeddings/tokenization_first")


def random_text(seed: int, length: int) -> str:
    """Assigned characters of old blocks, with many spaces, quotes and digits among them."""
    draw = random.Random(seed)
    blocks = [
        range(0x20, 0x7F),
        range(0xA1, 0x180),
        range(0x391, 0x3CA),
        range(0x4E00, 0x4F00),
        range(0x1F600, 0x1F640),
    ]
    letters = [chr(n) for block in blocks for n in block if unicodedata.category(chr(n)) != "Cn"]
    usual = [" ", "  ", "\n", "'s", "'", "7", "\u00a0", "the", "\u0301", "\t"]
    return "".join(draw.choice(usual if draw.random() < 0.5 else letters) for _ in range(length))


@pytest.mark.parametrize("seed", range(40))
def test_pieces_and_ids_by_hand_are_the_librarys(seed: int, tokenizer: Tokenizer, bpe: snippet.Bpe) -> None:
    text = random_text(seed, 2 + 7 * seed)
    character = snippet.byte_characters()
    theirs = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert ["".join(character[b] for b in piece.encode()) for piece in snippet.split(text)] == theirs
    assert snippet.encode_ids(text, bpe) == tokenizer.encode(text).ids


@pytest.mark.parametrize("piece", ["", "a", " tokenizer", "aaaaaaa", " antidisestablishmentarianism", "日本語の"])
def test_merging_by_lowest_rank_is_applying_the_list_from_its_start(piece: str, bpe: snippet.Bpe) -> None:
    symbols = [bytes([b]) for b in piece.encode()]
    for pair in bpe.ranks:  # the definition: every merge of the list, one after the other
        snippet.join(symbols, pair)
    assert snippet.merge(piece.encode(), bpe, len(bpe.ranks)) == symbols


def test_no_merges_leave_bytes_and_all_bytes_have_a_character_of_their_own(bpe: snippet.Bpe) -> None:
    assert snippet.encode("né 1", bpe, merges=0) == [bytes([b]) for b in "né 1".encode()]
    assert len(set(snippet.byte_characters().values())) == 256
    assert set(snippet.byte_characters().values()) == set(pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize("merges", [1, 2, 3, 5, 7, 20])
def test_trainer_by_hand_learns_what_the_library_learns(merges: int) -> None:
    theirs = list(snippet.bpe_of(snippet.library_trained(SENTENCE, merges)).ranks)
    assert snippet.learn(SENTENCE, merges, lambda left, right: (-left, -right)) == theirs
    assert len(theirs) == merges


def test_first_merge_by_counting_on_paper() -> None:
    # “aab aab ab”: a before b stands three times in it, a before a twice.
    assert snippet.learn("aab aab ab", 1, lambda left, right: (-left, -right)) == [(b"a", b"b")]


def test_trap_an_alphabet_from_the_text_alone_loses_what_the_text_lacks() -> None:
    short = Tokenizer(models.BPE())
    short.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    short.train_from_iterator([SENTENCE], trainers.BpeTrainer(vocab_size=60, show_progress=False))
    whole = snippet.library_trained(SENTENCE, 20)
    for text in ("low\x04", "lów", "Z"):
        assert b"".join(snippet.encode(text, snippet.bpe_of(short))) != text.encode()
        assert b"".join(snippet.encode(text, snippet.bpe_of(whole))) == text.encode()


def test_dropped_bytes_let_their_neighbours_merge(tokenizer: Tokenizer, bpe: snippet.Bpe) -> None:
    assert tokenizer.encode("!\x04!").ids == tokenizer.encode("!!").ids == snippet.encode_ids("!\x04!", bpe)


@pytest.mark.parametrize("name", list(snippet.HOSTILE))
def test_streaming_shows_the_text_and_never_a_broken_character(name: str, bpe: snippet.Bpe) -> None:
    text = snippet.HOSTILE[name]
    if name in ("control characters", "signs of an unassigned plane", "a lone surrogate"):
        assert b"".join(snippet.encode(text, bpe)) != text.encode("utf-8", "replace")
        return
    shown = snippet.stream(snippet.encode(text, bpe))
    assert "".join(shown) == text
    assert all(text.startswith("".join(shown[:end])) for end in range(len(shown)))


def test_library_streams_the_same(tokenizer: Tokenizer) -> None:
    for text in ("naïve 🦙!", snippet.FAMILY, "日本語"):
        ids, held = tokenizer.encode(text).ids, DecodeStream(skip_special_tokens=False)
        assert "".join(held.step(tokenizer, i) or "" for i in ids) == text
        assert "".join(tokenizer.decode([i]) for i in ids) != text


def test_trap_a_spelled_special_token_is_the_token_unless_encoded_apart(tokenizer: Tokenizer) -> None:
    end = snippet.bpe_of(tokenizer).special["<|im_end|>"]
    assert tokenizer.encode("a<|im_end|>b").ids.count(end) == 1
    values = snippet.injection_values(tokenizer)
    assert values == {"naive_turns_count": 3, "apart_turns_count": 2, "apart_differing_count": 0}
    assert tokenizer.encode("<|im_end|>").ids == [end]  # the setting was put back


def test_lone_surrogate_is_refused_by_the_library_and_kept_by_hand(tokenizer: Tokenizer, bpe: snippet.Bpe) -> None:
    assert snippet.returned(tokenizer, "\ud83d") == "refused"
    raw = b"".join(snippet.encode("\ud83d", bpe))
    assert raw.decode("utf-8", "surrogatepass") == "\ud83d"
    with pytest.raises(UnicodeDecodeError):
        raw.decode("utf-8")


def test_ids_to_text_to_ids_does_not_return(tokenizer: Tokenizer) -> None:
    apart = [tokenizer.get_vocab()[token] for token in ("l", "ook")]
    assert tokenizer.decode(apart) == "look"
    assert tokenizer.encode("look").ids != apart


def test_trace_ends_in_the_librarys_tokens_and_its_merges_rise(tokenizer: Tokenizer, bpe: snippet.Bpe) -> None:
    for piece in (" lookups", " tokenizer", "banana"):
        columns = snippet.trace_columns(piece, bpe)
        tokens = [token.replace("Ġ", "␣") for token in tokenizer.encode(piece).tokens]
        assert columns["symbols"][-1].split(" ") == tokens
        ranks = [int(rank.replace(",", "")) for rank in columns["merge"][1:]]
        assert ranks == sorted(ranks)
        assert len(ranks) >= 2


def test_more_merges_never_need_more_tokens(tokenizer: Tokenizer, bpe: snippet.Bpe) -> None:
    assert len(bpe.ranks) == snippet.KEPT[-1]
    columns = snippet.sweep_columns(bpe)
    for language in ("English", "Hindi"):
        counts = [n for n, name in zip(columns["text_tokens"], columns["language"], strict=True) if name == language]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] == len(tokenizer.encode(snippet.MESSAGE[language]).ids)


def test_lost_characters_by_arithmetic(measured: Mapping[str, float]) -> None:
    """Six control characters, and the planes whose first byte is 0xF1 or 0xF2: each has four planes."""
    assert measured["lost_characters_count"] == 6 + 8 * 2**16
    assert measured["byte_tokens_count"] + measured["lacking_bytes_count"] == 256


def test_measured_values_by_hand(measured: Mapping[str, float], tokenizer: Tokenizer) -> None:
    assert measured["hindi_tokens"] == len(tokenizer.encode(snippet.MESSAGE["Hindi"]).ids)
    assert measured["json_compact_tokens"] < measured["json_indented_tokens"]
    assert measured["naive_broken_count"] == measured["stream_tokens"] > measured["held_steps_count"] > 0
    assert measured["compared_tokens"] > 16_000
    assert measured["composed_tokens"] != measured["decomposed_tokens"]
    assert measured["whole_tokens"] < measured["cut_tokens"]


def test_digits_stand_alone_and_word_piece_returns_only_what_it_would_write(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2026").tokens == list("2026")
    word_piece = minilm.tokenizer()
    word_piece.no_padding()
    assert snippet.returned(word_piece, "the cat sat") == "yes"  # the positive control of “none comes back”
    assert snippet.returned(word_piece, "The cat sat") == "no"


def test_control_is_a_token_for_each_byte(measured: Mapping[str, float]) -> None:
    assert snippet.control()["english_tokens"] == len(snippet.MESSAGE["English"].encode()) > measured["english_tokens"]

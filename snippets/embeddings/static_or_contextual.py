"""Same word, two senses: is its vector the same?

Claim: a token enters with one vector whatever it means. The layers part its senses, farther than sentences of one sense
part it; a control of words with a single sense says how much of that is topic. A causal model does so only where the
telling words stand before: with them after, every layer is the same.

Run: python -m snippets.embeddings.static_or_contextual
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
import functools
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from snippets.instruments.device import pick
from snippets.models import encoder as bidirectional
from snippets.models import minilm, smollm2
from snippets.models.decoder import Decoder, rotation
from snippets.models.senses import SENSES, TOPICS, Contexts

# --8<-- [end:imports]

EACH = 4  # contexts of a word in one sense
LARGEST = 3  # dimensions asked how much of the norm is theirs


@functools.cache
def model(device: str = "cpu") -> Decoder:
    """SmolLM2, once a process."""
    return smollm2.decoder(torch.float32, device)


# --8<-- [start:states]
def states_of(ids: Tensor, decoder: Decoder) -> Tensor:
    """The lookup and what every layer hands on: (states, batch, tokens, hidden) of ids (batch, tokens)."""
    x = decoder.embed_tokens(ids)
    cos, sin = rotation(decoder.geometry, 0, ids.shape[1], x)
    found = [x]
    for block in decoder.layers:
        found.append(block(found[-1], cos, sin))
    return torch.stack(found)


@torch.inference_mode()
def word_states(texts: Sequence[str], decoder: Decoder) -> Tensor:
    """States of each text's last token, (states, texts, hidden). Zeros pad behind it, where it cannot look."""
    tokenizer = smollm2.tokenizer()
    encoded = [tokenizer.encode(text).ids for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), 32):  # texts of like length run together, so that little is padded
        chosen = order[start : start + 32]
        ids = torch.zeros(len(chosen), len(encoded[chosen[-1]]), dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, : len(encoded[i])] = torch.tensor(encoded[i])
        states = states_of(ids.to(decoder.embed_tokens.weight.device), decoder).cpu()
        found |= {i: states[:, row, len(encoded[i]) - 1] for row, i in enumerate(chosen)}
    return torch.stack([found[i] for i in range(len(texts))], dim=1)


# --8<-- [end:states]


# --8<-- [start:distances]
def standardised(states: Tensor) -> Tensor:
    """Each dimension of each layer with mean zero and deviation one over all texts (arXiv:2109.04404)."""
    wide = states.double()
    return (wide - wide.mean(1, keepdim=True)) / wide.std(1, keepdim=True)


def distances(states: Tensor) -> Tensor:
    """One minus the cosine of all pairs, (states, texts, texts), as half a squared difference: zero if equal."""
    unit = F.normalize(states.double(), dim=-1)
    return (unit[:, :, None] - unit[:, None, :]).square().sum(-1) / 2


def compared(states: Tensor) -> dict[str, Tensor]:
    """Per word and layer: distance between senses, within one, and whether the nearest other text has the same sense.

    `states` (states, words * senses * EACH, hidden) holds a word's texts in a row, one sense after the other.
    """
    sense = torch.arange(2 * EACH) // EACH
    same, itself = sense[:, None] == sense, torch.eye(2 * EACH, dtype=torch.bool)
    found: dict[str, list[Tensor]] = {"between": [], "within": [], "hit": []}
    for word in states.split(2 * EACH, dim=1):
        apart = distances(word)
        nearest = apart.masked_fill(itself, torch.inf).argmin(-1)
        found["between"].append(apart[:, ~same].mean(-1))
        found["within"].append(apart[:, same & ~itself].mean(-1))
        found["hit"].append((sense[nearest] == sense).double().mean(-1))
    return {name: torch.stack(each) for name, each in found.items()}  # (words, states)


# --8<-- [end:distances]


def texts_of(words: Contexts) -> list[str]:
    """All contexts, a word's together, one sense after the other."""
    return [text for pair in words.values() for side in pair for text in side]


@functools.cache
def gathered(words: int, topics: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """States of the first `words` of two senses and of the first `topics` of one sense."""
    senses, single = dict(list(SENSES.items())[:words]), dict(list(TOPICS.items())[:topics])
    states = word_states(texts_of(senses) + texts_of(single), model(device))
    return states[:, : words * 2 * EACH], states[:, words * 2 * EACH :]


def shuffled_senses(states: Tensor) -> Tensor:
    """The same texts with the senses of each word mixed evenly: what a difference of no sense looks like."""
    order = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])
    starts = torch.arange(0, states.shape[1], 2 * EACH)
    return states[:, (starts[:, None] + order).flatten()]


def count_values(states: Tensor, topics: Tensor) -> dict[str, int]:
    """Sizes, and the pairs of texts in two senses whose word enters with exactly equal vectors."""
    words = states.shape[1] // (2 * EACH)
    entered = states[0].split(EACH)
    equal = [torch.equal(a, b) for i in range(0, len(entered), 2) for a in entered[i] for b in entered[i + 1]]
    return {
        "words_count": words,
        "topic_words_count": topics.shape[1] // (2 * EACH),
        "each_count": EACH,
        "layers_count": len(states) - 1,
        "hidden_count": states.shape[2],
        "largest_count": LARGEST,
        "between_pairs_count": words * EACH * EACH,
        "within_pairs_count": words * EACH * (EACH - 1),
        "input_equal_count": sum(equal),
    }


def position_values(words: int) -> dict[str, float]:
    """Mean distance of the word's positions, between senses and within one."""
    tokenizer = smollm2.tokenizer()
    between, within = [], []
    for first, second in list(SENSES.values())[:words]:
        a, b = ([len(tokenizer.encode(text).ids) for text in side] for side in (first, second))
        between += [abs(x - y) for x in a for y in b]
        within += [abs(x - y) for side in (a, b) for x, y in combinations(side, 2)]
    return {"between_apart_tokens": sum(between) / len(between), "within_apart_tokens": sum(within) / len(within)}


def mean_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over words, and its standard error, of (words, states)."""
    return values.mean(0), values.std(0) / len(values) ** 0.5


# --8<-- [start:gaps]
def gap_values(senses: Mapping[str, Tensor], topics: Mapping[str, Tensor]) -> dict[str, float]:
    """The paired difference, between senses less within one, behind the first, the middle and the last layer."""
    (gap, error), (other, other_error) = (mean_error(each["between"] - each["within"]) for each in (senses, topics))
    middle = len(gap) // 2  # fixed beforehand: half of the layers
    return {
        "between_difference": float(senses["between"].mean(0)[middle]),
        "within_difference": float(senses["within"].mean(0)[middle]),
        "middle_gap_difference": float(gap[middle]),
        "middle_error_difference": float(error[middle]),
        "topic_gap_difference": float(other[middle]),
        "topic_error_difference": float(other_error[middle]),
        "middle_hit_share": float(senses["hit"].mean(0)[middle]),
        "first_gap_difference": float(gap[1]),
        "last_gap_difference": float(gap[-1]),
        "peak_layer_count": int(gap.argmax()),
    }


# --8<-- [end:gaps]


def curve_columns(senses: Mapping[str, Tensor]) -> dict[str, list]:
    """Both distances, behind every second layer."""
    names = {"between": "two senses", "within": "one sense"}
    depths = range(0, senses["between"].shape[1], 2)
    return {
        "layer_count": [*depths] * 2,
        "pairs": [shown for shown in names.values() for _ in depths],
        "cosine_difference": [float(senses[name].mean(0)[depth]) for name in names for depth in depths],
    }


def gap_columns(senses: Mapping[str, Tensor], topics: Mapping[str, Tensor], errors: float) -> dict[str, list]:
    """The gap of senses with a band of so many standard errors, and that of topics, behind every second layer."""
    (gap, error), (other, _) = (mean_error(each["between"] - each["within"]) for each in (senses, topics))
    lines = {"senses": gap, "upper edge": gap + errors * error, "lower edge": gap - errors * error, "topics": other}
    depths = range(0, len(gap), 2)
    return {
        "layer_count": [*depths] * len(lines),
        "line": [name for name in lines for _ in depths],
        "gap_difference": [float(line[depth]) for line in lines.values() for depth in depths],
    }


# --8<-- [start:anisotropy]
def strangers(states: Tensor) -> Tensor:
    """Mean cosine of different words in different texts, (states,)."""
    apart = distances(states)
    word = torch.arange(states.shape[1]) // (2 * EACH)
    return 1 - apart[:, word[:, None] != word].mean(-1)


def anisotropy_values(states: Tensor, topics: Tensor) -> dict[str, float]:
    """Cosines of strangers at the middle layer, stored and standardised, and where the squared norm sits."""
    middle = len(states) // 2
    own = torch.cat([states, topics], dim=1)
    energy = own[middle].double().square().mean(0)
    return {
        "strangers_ratio": float(strangers(states[middle : middle + 1])),
        "standard_strangers_ratio": float(strangers(standardised(own)[middle : middle + 1])),
        "largest_share": float(energy.topk(LARGEST).values.sum() / energy.sum()),
        "raw_between_difference": float(compared(states[middle : middle + 1])["between"].mean()),
    }


# --8<-- [end:anisotropy]


def told(words: int, *, first: bool = False) -> list[list[tuple[str, int]]]:
    """Two lists of texts that differ in the sense of each word, told only after it, and where its last letter stands.

    With `first` they tell it before: the control.
    """
    sides: list[list[tuple[str, int]]] = [[], []]
    for word, contexts in list(SENSES.items())[:words]:
        looked = f"Everyone looked at the {word}"
        for side, context in zip(sides, contexts, strict=True):
            text = f"{context[0]}. {looked}." if first else f"{looked}. {context[0]}."
            side.append((text, text.index(looked) + len(looked) - 1))
    return sides


def read(tokenizer: Tokenizer, texts: Sequence[tuple[str, int]], length: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (texts, tokens) padded with zeros to `length` at least, which are real, and each text's token of its letter.

    Raises:
        ValueError: no token holds the letter.
    """
    encoded = [tokenizer.encode(text) for text, _ in texts]
    ids = torch.zeros(len(texts), max(length, *(len(each.ids) for each in encoded)), dtype=torch.long)
    places = []
    for row, (each, (text, letter)) in enumerate(zip(encoded, texts, strict=True)):
        if (place := each.char_to_token(letter)) is None:
            raise ValueError(f"no token holds letter {letter} of {text!r}")
        places.append(place)
        ids[row, : len(each.ids)] = torch.tensor(each.ids)
    real = torch.arange(ids.shape[1]) < torch.tensor([[len(each.ids)] for each in encoded])
    return ids, real, torch.tensor(places)


# --8<-- [start:after]
@torch.inference_mode()
def decoder_after(sides: Sequence[Sequence[tuple[str, int]]], decoder: Decoder) -> dict[str, float]:
    """States of each word in two texts that differ after it: how many are equal, and how far others lie at most."""
    tokenizer, device = smollm2.tokenizer(), decoder.embed_tokens.weight.device
    longest = max(read(tokenizer, side)[0].shape[1] for side in sides)

    def states(side: Sequence[tuple[str, int]], length: int) -> Tensor:
        ids, _, places = read(tokenizer, side, length)
        return states_of(ids.to(device), decoder)[:, torch.arange(len(ids)), places]  # (states, words, hidden)

    one, other, longer = states(sides[0], longest), states(sides[1], longest), states(sides[1], longest + 3)
    equal = (one == other).all(-1)  # one shape: the same sums in the same order
    apart = (one - longer).norm(dim=-1) / longer.norm(dim=-1)
    return {
        "after_states_count": equal.numel(),
        "after_equal_count": int(equal.sum()),
        "after_apart_difference": float(apart.max()),
    }


@torch.inference_mode()
def encoder_after(sides: Sequence[Sequence[tuple[str, int]]], device: str = "cpu") -> dict[str, float]:
    """The same texts through MiniLM, which reads both ways: mean cosine distance of the words' last states."""
    reader, tokenizer, vectors = bidirectional.encoder(device=device), minilm.tokenizer(), []
    tokenizer.no_padding()
    for side in sides:
        ids, real, places = read(tokenizer, side)
        vectors.append(reader(ids.to(device), real.to(device))[torch.arange(len(ids)), places])
    return {"encoder_apart_difference": 1 - float(F.cosine_similarity(vectors[0], vectors[1], dim=1).mean())}


# --8<-- [end:after]


# --8<-- [start:itself]
def itself_values(rows: Tensor) -> dict[str, float]:
    """Cosine of rows (rows, hidden) with themselves in FP32: how many miss one, and by how much at most."""
    cosine = F.cosine_similarity(rows, rows, dim=1)
    short = F.cosine_similarity(rows.bfloat16(), rows.bfloat16(), dim=1)
    return {
        "itself_missed_share": float((cosine != 1).double().mean()),
        "itself_missed_difference": float((cosine.double() - 1).abs().max()),
        "itself_bf16_difference": float((short.double() - 1).abs().max()),
    }


# --8<-- [end:itself]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` takes fewer words."""
    where = str(pick(device))
    words, topics = (7, 3) if small else (len(SENSES), len(TOPICS))
    states, single = gathered(words, topics, where)
    return {
        **count_values(states, single),
        **position_values(words),
        **_gaps(states, single),
        **anisotropy_values(states, single),
        **decoder_after(told(3 if small else words), model(where)),
        **encoder_after(told(3 if small else words), where),
        **itself_values(model(where).embed_tokens.weight[:: 16 if small else 1]),
    }


def _gaps(states: Tensor, topics: Tensor) -> dict[str, float]:
    own = standardised(torch.cat([states, topics], dim=1))
    count = states.shape[1]
    return gap_values(compared(own[:, :count]), compared(own[:, count:]))


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Senses mixed; the telling words first; standardised before it is measured; equality in place of cosines."""
    found, where = measure(small=small), str(pick(device))
    words, topics = (7, 3) if small else (len(SENSES), len(TOPICS))
    states, single = gathered(words, topics, where)
    found |= _gaps(shuffled_senses(states), shuffled_senses(single)) | decoder_after(told(3, first=True), model(where))
    even = anisotropy_values(standardised(states), standardised(single))
    rows = model(where).embed_tokens.weight[::16]
    found["itself_missed_share"] = float((rows != rows.clone()).any(1).double().mean())
    return found | {name: even[name] for name in ("strangers_ratio", "largest_share")}


if __name__ == "__main__":
    from measured.values import report

    report("embeddings/static_or_contextual", measure())

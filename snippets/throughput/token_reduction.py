"""Early stopping, token pruning, truncation: what do fewer tokens cost?

Claim: an end token or a stop string saves tokens that nobody asked for, and what was written stays the same. A limit
on tokens cuts answers off. A shorter prompt reaches its first token sooner, and the answer is lost where the words that
held it are. Pruning by attention keeps more of the meaning than chance does, not all of it.

Run: python -m snippets.throughput.token_reduction
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import capabilities, pick
from snippets.instruments.roofline import predict_seconds
from snippets.models import minilm, retrieval, smollm2, texts
from snippets.models.decoder import Decoder, Device, KVCache, generate, initialize
from snippets.models.encoder import Encoder, encoder
from snippets.models.shapes import LLAMA_3_8B, Geometry, parameters

LAYER = replace(LLAMA_3_8B, name="one layer of Llama-3-8B", layers=1, vocabulary=256)
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Germany": "Berlin", "Egypt": "Cairo",
}  # fmt: skip
SECRETS = {
    "harbor": "apple", "library": "river", "station": "silver",
    "market": "window", "garden": "paper", "theater": "stone",
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How much is measured: questions and titles, shares kept, prompts, tokens written, filler, lengths, rounds."""

    questions: int = 384
    titles: int = 1024
    keeps: Sequence[float] = (0.75, 0.5, 0.25)
    prompts: int = 6
    new_tokens: int = 24
    filler_tokens: int = 96
    lengths: Sequence[int] = (4, 8, 64, 128, 256)
    rounds: int = 9
    layer: Geometry = LAYER


NARROW = replace(LAYER, name="a narrower layer", hidden=1024, heads=8, kv_heads=2, ffn=3584)
SMALL = Scale(64, 128, (0.5, 0.25), 3, 16, 64, (4, 8, 16, 32, 64), 7, NARROW)


# --8<-- [start:stop]
@torch.inference_mode()
def write(decoder: Decoder, ids: Tensor, most: int, done: Callable[[list[int]], bool]) -> list[int]:
    """Greedy tokens of a prompt, ids (batch, tokens) with a batch of one, until `done` with them, or `most`."""
    weight = decoder.embed_tokens.weight
    cache_ = KVCache(decoder.geometry, 1, ids.shape[1] + most, weight.dtype, weight.device)
    fresh = ids
    written: list[int] = []
    while len(written) < most and not done(written):
        fresh = decoder(fresh, cache_, last_only=True)[:, -1].argmax(-1, keepdim=True)
        written.append(int(fresh))
    return written


# --8<-- [end:stop]

Rule = Callable[[list[int]], bool]


def rules(tokenizer: Tokenizer) -> dict[str, Rule]:
    """When an answer is done, given its tokens: never, at the end token, at the first full stop, at four tokens."""
    end = tokenizer.token_to_id("<|im_end|>")
    return {
        "no stop": lambda written: False,
        "end token": lambda written: end in written,
        "stop string": lambda written: "." in tokenizer.decode(written),
        "limit": lambda written: len(written) >= 4,
    }


def prompts(tokenizer: Tokenizer, count: int, device: Device) -> Tensor:
    """Questions in the model's chat form, of one length: (count, tokens)."""
    begin, end = "<|im_start|>user\nWhat is the capital of ", "?<|im_end|>\n<|im_start|>assistant\n"
    asked = [f"{begin}{country}{end}" for country in CAPITALS]
    return torch.tensor([tokenizer.encode(text).ids for text in asked[:count]], device=device)


def stop_columns(decoder: Decoder, scale: Scale, chosen: Sequence[str] | None = None) -> dict[str, list]:
    """By rule: tokens written, answers that are the unstopped one's beginning, right ones, tokens saved.

    The unstopped ones are written in one batch, for as long as allowed; each stopped one alone.
    """
    tokenizer, device = smollm2.tokenizer(), decoder.embed_tokens.weight.device
    ids = prompts(tokenizer, scale.prompts, device)
    full = generate(decoder, ids, scale.new_tokens).tolist()
    capitals = list(CAPITALS.values())
    columns: dict[str, list] = defaultdict(list)
    for name, done in rules(tokenizer).items():
        if name == "no stop" or (chosen is not None and name not in chosen):
            answers = full
        else:
            answers = [write(decoder, ids[i : i + 1], scale.new_tokens, done) for i in range(len(ids))]
        same = sum(answer == whole[: len(answer)] for answer, whole in zip(answers, full, strict=True))
        said = [tokenizer.decode(answer) for answer in answers]
        row = {
            "rule": name,
            "written_tokens": sum(map(len, answers)),
            "same_count": same,
            "right_count": sum(capital in text for capital, text in zip(capitals, said, strict=False)),
            "saved_share": 1 - sum(map(len, answers)) / sum(map(len, full)),
        }
        for key, value in row.items():
            columns[key].append(value)
    return dict(columns)


def stop_values(columns: dict[str, list]) -> dict[str, float]:
    """What the page states of each rule."""
    found: dict[str, float] = {"answers_count": columns["same_count"][columns["rule"].index("no stop")]}
    keys = {"no stop": "unstopped", "end token": "ended", "stop string": "stopped", "limit": "limited"}
    for name, key in keys.items():
        row = columns["rule"].index(name)
        found |= {f"{key}_{column}": columns[column][row] for column in ("same_count", "right_count", "saved_share")}
    return found


def boundary_values() -> dict[str, int]:
    """Paragraph breaks of a text, found in the text, and by the token that the stop string alone would be."""
    tokenizer, text = smollm2.tokenizer(), texts.address()
    stop, ids = tokenizer.encode("\n\n").ids, tokenizer.encode(text).ids
    at = [i for i in range(len(ids)) if ids[i : i + len(stop)] == stop]
    return {"text_breaks_count": text.count("\n\n"), "token_breaks_count": len(at)}


# --8<-- [start:prune]
def received(layer: Any, x: Tensor) -> Tensor:
    """Attention that each token of x (batch, tokens, hidden) receives, mean over heads and queries: (batch, tokens)."""
    project = layer.attention["self"]
    queries, keys = (
        linear(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for linear in (project.query, project.key)
    )
    return (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1).mean((1, 2))


def kept_places(scores: Tensor, count: int) -> Tensor:
    """Places (batch, count) of the first token, the last and the inner ones with the highest scores, in order."""
    scores = scores.clone()
    scores[:, 0] = scores[:, -1] = torch.inf
    return scores.topk(count).indices.sort(1).values


def take(x: Tensor, places: Tensor) -> Tensor:
    """Rows of x (batch, tokens, hidden) at places (batch, count)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


# --8<-- [end:prune]


def kept_count(tokens: int, keep: float) -> int:
    """Tokens kept, the two special ones among them and one more at least."""
    return min(tokens, max(3, ceil(keep * (tokens - 2)) + 2))


def _scores(way: str, layer: Any, x: Tensor, seed: int) -> Tensor:
    places = torch.arange(x.shape[1], device=x.device, dtype=torch.float32).expand(x.shape[:2])
    if way == "attention received":
        return received(layer, x)
    if way == "at random":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(x.shape[:2], generator=generator).to(x.device)
    return {"first words": -places, "last words": places}[way]


@cache
def _plain_tokenizer() -> Tokenizer:
    stored = minilm.tokenizer()
    stored.no_padding()
    return stored


@torch.inference_mode()
def vectors(model: Encoder, sentences: Sequence[str], way: str, keep: float, after: int) -> Tensor:
    """Unit vectors (sentences, hidden), FP32, of the tokens that are kept behind `after` layers.

    Sentences of one length run together, so nothing is padded. Words cut off in front of the first layer close up.
    """
    encoded = [encoding.ids for encoding in _plain_tokenizer().encode_batch(list(sentences))]
    of_length: dict[int, list[int]] = defaultdict(list)
    for place, one in enumerate(encoded):
        of_length[len(one)].append(place)
    device = model.embeddings.word_embeddings.weight.device
    found = torch.empty(len(sentences), model.embeddings.word_embeddings.embedding_dim, device=device)
    layers: Any = model.encoder.layer
    for length, chosen in of_length.items():
        ids = torch.tensor([encoded[place] for place in chosen], device=device)
        count = kept_count(length, keep)
        if after == 0:
            places = kept_places(_scores(way, None, ids[..., None].float(), length), count)
            x = model.embeddings(ids.gather(1, places))
        else:
            x = model.embeddings(ids)
        for depth, layer in enumerate(layers, start=1):
            scores = _scores(way, layer, x, length) if depth == after else None
            x = layer(x, torch.ones(1, 1, 1, x.shape[1], dtype=torch.bool, device=device))
            if scores is not None:
                x = take(x, kept_places(scores, count))
        found[torch.tensor(chosen, device=device)] = F.normalize(x.float().mean(1), dim=1)
    return found


# --8<-- [start:work]
def layer_flops(tokens: int, hidden: int, ffn: int) -> int:
    """Operations of one encoder layer: its matrices for every token, and scores and mixing for every pair."""
    return 2 * tokens * (4 * hidden * hidden + 2 * hidden * ffn) + 4 * tokens * tokens * hidden


def work(lengths: Sequence[int], keep: float, after: int) -> int:
    """Operations of all layers over texts of these lengths, with `keep` of the tokens behind `after` layers."""
    config = minilm.config()
    sizes = config["hidden_size"], config["intermediate_size"]
    layers = config["num_hidden_layers"]
    return sum(
        after * layer_flops(tokens, *sizes) + (layers - after) * layer_flops(kept_count(tokens, keep), *sizes)
        for tokens in lengths
    )


# --8<-- [end:work]

WAYS = {"attention received": 2, "at random": 2, "first words": 0, "last words": 0}


def cut_text(sentences: Sequence[str], way: str, keep: float) -> list[str]:
    """The words whose tokens `vectors` keeps in front of the first layer, as text: for BM25."""
    cut = []
    for sentence in sentences:
        inner = _plain_tokenizer().encode(sentence).ids[1:-1]
        count = kept_count(len(inner) + 2, keep) - 2
        cut.append(_plain_tokenizer().decode(inner[:count] if way == "first words" else inner[-count:]))
    return cut


def title_columns(model: Encoder, scale: Scale) -> tuple[dict[str, list], dict[str, Tensor]]:
    """(a chart's columns: share of questions whose title comes first, by way and work; hits (questions,) by name)."""
    found = retrieval.finding(scale.questions, scale.titles)
    titles = vectors(model, found.titles, "first words", 1.0, 0)
    lengths = [len(encoding.ids) for encoding in _plain_tokenizer().encode_batch(found.questions)]
    whole = work(lengths, 1.0, 0)
    hits: dict[str, Tensor] = {}
    rows: dict[str, list] = {"way": [], "keep_share": [], "work_share": [], "title_share": []}
    for way, after in WAYS.items():
        for keep in (1.0, *scale.keeps):
            name = "whole" if keep == 1 else f"{way} {keep}"
            if name not in hits:
                asked = vectors(model, found.questions, way, keep, after)
                hits[name] = retrieval.hits(retrieval.exact(titles, asked, 1).cpu(), found.answers)
            values = (way, keep, work(lengths, keep, after) / whole, float(hits[name].mean()))
            for column, value in zip(rows.values(), values, strict=True):
                column.append(value)
    for way in ("first words", "last words"):
        for keep in (1.0, 0.5):
            asked_text = cut_text(found.questions, way, keep)
            hits[f"BM25 {way} {keep}"] = retrieval.hits(retrieval.bm25(found.titles, asked_text, 1), found.answers)
    return rows, hits


def title_values(hits: dict[str, Tensor]) -> dict[str, float]:
    """Shares at half of the tokens, and paired differences with their standard errors."""
    names = {
        "attention": "attention received 0.5",
        "random": "at random 0.5",
        "first": "first words 0.5",
        "last": "last words 0.5",
    }
    whole = hits["whole"]
    values: dict[str, float] = {"title_share": float(whole.mean())}
    for key, name in names.items():
        lost, error = retrieval.mean_error(whole - hits[name])
        values[f"{key}_title_share"] = float(hits[name].mean())
        values |= {f"{key}_lost_share": lost, f"{key}_error_share": error}
    for key, keep in (("half", 0.5), ("quarter", 0.25)):
        gained, error = retrieval.mean_error(hits[f"attention received {keep}"] - hits[f"at random {keep}"])
        values |= {f"{key}_over_random_share": gained, f"{key}_over_random_error_share": error}
    values["bm25_title_share"] = float(hits["BM25 first words 1.0"].mean())
    for way in ("first", "last"):
        values[f"bm25_{way}_title_share"] = float(hits[f"BM25 {way} words 0.5"].mean())
    return values


def work_values(columns: dict[str, list]) -> dict[str, float]:
    """Share of the operations at half of the tokens: cut in front of the first layer, or behind the second."""
    rows = zip(columns["way"], columns["keep_share"], columns["work_share"], strict=True)
    half = {way: share for way, keep, share in rows if keep == 0.5}
    return {"pruned_work_share": half["attention received"], "cut_work_share": half["first words"]}


# --8<-- [start:truncate]
def truncated(ids: list[int], keep: int, way: str) -> list[int]:
    """So many of the tokens: the newest, or as many from the beginning as from the end."""
    if way == "all":
        return ids
    head = keep // 2 if way == "both ends" else 0
    return ids[:head] + ids[len(ids) - (keep - head) :]


# --8<-- [end:truncate]

FACT_PLACES = ("beginning", "later")
CUTS = ("all", "newest", "both ends")


@torch.inference_mode()
def fact_losses(decoder: Decoder, scale: Scale, place: str, way: str) -> tuple[Tensor, Tensor]:
    """(loss of the right word among six, whether it is chosen), (prompts,) each: a fact in a text, asked behind it.

    A text of so many tokens holds the fact at its beginning or behind its middle, and is cut to half. The question
    stays.
    """
    tokenizer, device = smollm2.tokenizer(), decoder.embed_tokens.weight.device
    filler = tokenizer.encode(texts.address()).ids[200 : 200 + scale.filler_tokens]
    words = [tokenizer.encode(f" {word}").ids[0] for word in SECRETS.values()]
    split = 0 if place == "beginning" else len(filler) * 5 // 8
    rows = []
    for name, word in list(SECRETS.items())[: scale.prompts]:
        fact = tokenizer.encode(f" The secret word of the {name} is {word}.").ids
        text = filler[:split] + fact + filler[split:]
        asked = tokenizer.encode(f"\n\nRemember: the secret word of the {name} is").ids
        rows.append(truncated(text, len(text) // 2, way) + asked)
    logits = decoder(torch.tensor(rows, device=device), last_only=True)[:, -1].float()[:, words]
    right = torch.arange(len(rows), device=device)
    loss = F.cross_entropy(logits, right, reduction="none").double().cpu()
    return loss, (logits.argmax(1) == right).double().cpu()


def fact_columns(
    decoder: Decoder, scale: Scale, ways: Sequence[str] = CUTS
) -> tuple[dict[str, list], dict[str, float]]:
    """(a table's columns by place of the fact and cut; the page's values)."""
    columns: dict[str, list] = {"fact": [], "kept": [], "right_count": [], "loss_nats": []}
    words = {"all": "all of it", "newest": "newest half", "both ends": "both ends, half"}
    values: dict[str, float] = {"facts_count": scale.prompts}
    for place in FACT_PLACES:
        losses = {way: fact_losses(decoder, scale, place, way) for way in dict.fromkeys(ways)}
        for way, (loss, right) in losses.items():
            row = (place, words[way], int(right.sum()), float(loss.mean()))
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
        for key, way in zip(("whole", "newest", "ends"), ways, strict=True):
            values[f"{place}_{key}_right_count"] = int(losses[way][1].sum())
        for key, way in (("newest", ways[1]), ("ends", ways[2])):
            added = losses[way][0] - losses[ways[0]][0]
            values[f"{place}_{key}_added_nats"], values[f"{place}_{key}_error_nats"] = retrieval.mean_error(added)
    return columns, values


def fast_dtype(device: torch.device) -> torch.dtype:
    """BF16 where the device multiplies it with instructions of its own, else FP32."""
    return torch.bfloat16 if "fast-bf16" in capabilities(device) else torch.float32


def layer_decoder(geometry: Geometry, dtype: torch.dtype, device: Device) -> Decoder:
    """One layer of a model's shape with random weights, and next to no vocabulary: it stands for speed only."""
    with torch.device("meta"):
        decoder = Decoder(geometry)
    decoder = decoder.to(dtype).to_empty(device=device)
    initialize(decoder, 0)
    return decoder.requires_grad_(False).eval()


# --8<-- [start:first_token]
def first_token_columns(
    scale: Scale, device: torch.device, keep: Callable[[int], int] = lambda n: n
) -> dict[str, list]:
    """Seconds to the first token by prompt length; `keep` says how many tokens of a prompt are run."""
    clock.fix_allocator()
    decoder = layer_decoder(scale.layer, fast_dtype(device), device)
    ids = {n: (torch.arange(keep(n), device=device) % scale.layer.vocabulary)[None] for n in scale.lengths}

    def run(prompt: Tensor) -> Callable[[], object]:
        return torch.inference_mode()(lambda: decoder(prompt, last_only=True))

    calls = {str(n): run(prompt) for n, prompt in ids.items()}
    taken = clock.interleave(calls, device=device, rounds=scale.rounds, blocks=max(1, scale.rounds // 3))
    longest = str(max(scale.lengths))
    return {
        "prompt_tokens": list(scale.lengths),
        "first_seconds": [taken.seconds(name) for name in calls],
        "sooner_ratio": [taken.ratio(longest, name) for name in calls],
    }


# --8<-- [end:first_token]


def first_token_values(columns: dict[str, list]) -> tuple[dict[str, float], dict[str, float]]:
    """(how much sooner a quarter of the longest prompt is; the same of half of it, and of half of a short one)."""
    of = dict(zip(columns["prompt_tokens"], columns["sooner_ratio"], strict=True))
    longest = max(of)
    shown = {
        "long_prompt_tokens": longest,
        "quarter_prompt_tokens": longest // 4,
        "half_sooner_ratio": of[longest // 2],
        "short_sooner_ratio": of[4] / of[8],
    }
    return {"quarter_sooner_ratio": of[longest // 4]}, shown


def predicted_values() -> dict[str, float]:
    """Llama-3-8B on an H100 by declared peaks, BF16: half of a short and a long prompt; a token written, one read."""
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    counted = parameters(LLAMA_3_8B)
    weights = counted.linear + counted.head

    def prefill(tokens: int) -> float:
        return predict_seconds(flops=2 * weights * tokens, bytes=2 * weights, peak=peak)

    return {
        "h100_short_ratio": prefill(256) / prefill(128),
        "h100_long_ratio": prefill(4096) / prefill(2048),
        "h100_step_seconds": prefill(1),
        "written_over_read_ratio": prefill(1) * 4096 / prefill(4096),
        "h100_read_seconds": prefill(4096) / 4096,
        "h100_short_tokens": 256,
        "h100_long_tokens": 4096,
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page."""
    scale, target = SMALL if small else Scale(), pick(device)
    model, writer = encoder(dtype or torch.float32, target), smollm2.decoder(dtype or torch.float32, target)
    columns, hits = title_columns(model, scale)
    gated, shown = first_token_values(first_token_columns(scale, target))
    found = {**stop_values(stop_columns(writer, scale)), **boundary_values(), **title_values(hits), **gated, **shown}
    return found | work_values(columns) | fact_columns(writer, scale)[1] | predicted_values()


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """No token is saved: no rule stops, no word is cut or pruned, every prompt is run in full."""
    scale, target = SMALL if small else Scale(), pick(device)
    writer = smollm2.decoder(dtype or torch.float32, target)
    _, hits = title_columns(encoder(dtype or torch.float32, target), replace(scale, keeps=()))
    hits |= {f"{way} {keep}": hits["whole"] for way in WAYS for keep in (0.5, 0.25)}
    longest = max(scale.lengths)
    gated, _ = first_token_values(first_token_columns(scale, target, lambda n: longest))
    found = stop_values(stop_columns(writer, scale, chosen=()))
    return found | title_values(hits) | gated | fact_columns(writer, scale, ("all", "all", "all"))[1]


if __name__ == "__main__":
    from measured.values import report

    report("throughput/token_reduction", measure())

"""Cosine, dot product or Euclidean distance?

Claim: on vectors of length one all three rank alike. On raw vectors they do not: the dot product prefers long ones.
Random directions have cosines about zero, spread as one over the root of the dimension; a language model's hidden
states do not, so a threshold holds for one model only. Cosine distance is no metric; inner products become distances
with one more dimension.

Run: python -m snippets.embeddings.similarity_measures
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments.device import pick
from snippets.models import minilm, similarity, smollm2
from snippets.models.decoder import Decoder, rotation
from snippets.models.encoder import Encoder, encoder
from snippets.models.similarity import Pairs, paired_spearman, spearman, spearman_error

# --8<-- [end:imports]

TOP = 10
DIMENSIONS = (16, 64, 384, 1024, 4096)
MEASURES = ("cosine", "dot", "l2")


# --8<-- [start:measures]
def nearness(queries: Tensor, keys: Tensor) -> dict[str, Tensor]:
    """Scores (queries, keys) by each measure, more is nearer: the distance enters with a minus."""
    return {
        "cosine": F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T,
        "dot": queries @ keys.T,
        "l2": -torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist"),
    }


# --8<-- [end:measures]


@torch.inference_mode()
def pooled(model: Encoder, sentences: list[str], batch: int = 64) -> Tensor:
    """Means of a sentence's hidden states before they are normalised, (sentences, hidden)."""
    tokenizer, found = minilm.tokenizer(), []
    tokenizer.enable_padding(pad_id=minilm.config()["pad_token_id"], pad_token="[PAD]")
    device = model.embeddings.word_embeddings.weight.device
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    for start in range(0, len(order), batch):
        encodings = tokenizer.encode_batch([sentences[i] for i in order[start : start + batch]])
        ids = torch.tensor([e.ids for e in encodings], device=device)
        mask = torch.tensor([e.attention_mask for e in encodings], device=device)
        found.append((model(ids, mask) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(found)[torch.tensor(order, device=device).argsort()]


def distinct(vectors: Tensor) -> Tensor:
    """The rows without those that repeat an earlier one's direction: equal rows have no order to compare."""
    unit = F.normalize(vectors.double(), dim=1)
    return vectors[~((unit @ unit.T).tril(-1) > 1 - 1e-6).any(1)]


# --8<-- [start:unit]
def unit_values(vectors: Tensor) -> dict[str, float]:
    """Every row of vectors (n, width) asks all: are full rankings equal, does the identity hold?"""
    unit = F.normalize(vectors.double(), dim=1)
    found = nearness(unit, unit)
    orders = {name: scores.argsort(dim=1, descending=True, stable=True) for name, scores in found.items()}
    short = nearness(unit.float(), unit.float())
    return {
        "vectors_count": len(unit),
        "same_as_dot_count": int((orders["cosine"] == orders["dot"]).all(1).sum()),
        "same_as_l2_count": int((orders["cosine"] == orders["l2"]).all(1).sum()),
        "identity_difference": float((short["l2"] ** 2 - (2 - 2 * short["cosine"])).abs().max()),
        "fp64_identity_difference": float((found["l2"] ** 2 - (2 - 2 * found["cosine"])).abs().max()),
    }


# --8<-- [end:unit]


def best(scores: Tensor, own: Tensor, top: int = TOP) -> Tensor:
    """Indices (queries, top) of the nearest by scores (queries, keys), without each query's own key."""
    return scores.scatter(1, own[:, None], -torch.inf).topk(top).indices


def overlap(one: Tensor, other: Tensor) -> float:
    """Mean share of one's indices (queries, top) that are in the other's."""
    return float((one[:, :, None] == other[:, None, :]).any(2).double().mean())


def raw_values(vectors: Tensor, matrix: Tensor, queries: int = 256) -> dict[str, float]:
    """Nearest ten by each measure on raw vectors: of sentences, and rows of a token matrix asked by some of them."""
    found: dict[str, float] = {}
    asked = torch.arange(0, len(matrix), max(1, len(matrix) // queries), device=matrix.device)
    dot = matrix[asked] @ matrix.T
    squared = matrix.square().sum(1)
    tokens = {"cosine": dot / squared.sqrt(), "dot": dot, "l2": 2 * dot - squared}  # as ranked for one query
    everyone = torch.arange(len(vectors), device=vectors.device)
    for name, scores, own in (("sentence", nearness(vectors, vectors), everyone), ("token", tokens, asked)):
        tops = {measure: best(scores[measure], own) for measure in MEASURES}
        found[f"{name}_dot_overlap_share"] = overlap(tops["cosine"], tops["dot"])
        found[f"{name}_l2_overlap_share"] = overlap(tops["cosine"], tops["l2"])
    for name, rows in (("sentence", vectors), ("token", matrix)):
        lengths = rows.norm(dim=1)
        found[f"{name}_length_spread_share"] = float(lengths.std() / lengths.mean())
    for measure in MEASURES:
        found[f"token_{measure}_self_share"] = float((tokens[measure].argmax(1) == asked).double().mean())
    rank = torch.arange(len(matrix), dtype=torch.float64)
    found["length_by_rank_difference"] = float(spearman(squared.double().cpu(), rank))
    return found


def people_values(first: Tensor, second: Tensor, score: Tensor) -> dict[str, float]:
    """Spearman's correlation with people's scores by each measure on raw vectors, and how far below cosine's."""
    scores = {
        "cosine": F.cosine_similarity(first, second),
        "dot": (first * second).sum(1),
        "l2": -(first - second).norm(dim=1),
    }
    scores = {name: values.double().cpu() for name, values in scores.items()}
    found: dict[str, float] = {}
    found["people_cosine_difference"], found["people_cosine_error_difference"] = spearman_error(scores["cosine"], score)
    for name in MEASURES[1:]:
        lost, error = paired_spearman(scores["cosine"], scores[name], score)
        found |= {f"people_{name}_lost_difference": lost, f"people_{name}_error_difference": error}
    return found


# --8<-- [start:random]
def random_columns(pairs: int, dimensions: tuple[int, ...] = DIMENSIONS) -> dict[str, list]:
    """Cosines of independent Gaussian vectors: their standard deviation beside one over the root."""
    generator = torch.Generator().manual_seed(0)
    columns: dict[str, list] = {"width_count": list(dimensions), "spread_difference": [], "predicted_difference": []}
    for width in dimensions:
        one, other = (torch.randn(pairs, width, generator=generator) for _ in range(2))
        columns["spread_difference"].append(float(F.cosine_similarity(one, other).square().mean().sqrt()))
        columns["predicted_difference"].append(width**-0.5)
    return columns


# --8<-- [end:random]


def random_values(columns: dict[str, list]) -> dict[str, float]:
    """The worst relative deviation, and the spread at MiniLM's width."""
    pairs = list(zip(columns["spread_difference"], columns["predicted_difference"], strict=True))
    return {
        "random_off_share": max(abs(found / expected - 1) for found, expected in pairs),
        "random_384_difference": columns["spread_difference"][columns["width_count"].index(384)],
    }


# --8<-- [start:mips]
def lengthened(keys: Tensor) -> Tensor:
    """One more dimension makes every key (n, width) as long as the longest: Bachrach et al."""
    squared = keys.square().sum(1, keepdim=True)
    return torch.cat((keys, (squared.max() - squared).clamp(min=0).sqrt()), 1)


def mips_values(keys: Tensor, queries: Tensor) -> dict[str, int]:
    """Queries whose ten greatest inner products are the ten least distances, with the dimension and without."""
    greatest = (queries @ keys.T).topk(TOP).indices.sort(1).values
    found = {"mips_queries_count": len(queries)}
    for name, (asked, held) in {
        "mips_equal_count": (F.pad(queries, (0, 1)), lengthened(keys)),
        "plain_equal_count": (queries, keys),
    }.items():
        nearest = nearness(asked, held)["l2"].topk(TOP).indices.sort(1).values
        found[name] = int((nearest == greatest).all(1).sum())
    return found


# --8<-- [end:mips]


def metric_values(vectors: Tensor, count: int = 160) -> dict[str, float]:
    """Share of ordered triples in which the way round is shorter than the way, by cosine and by distance."""
    unit = F.normalize(vectors[:count].double(), dim=1)
    found, away = nearness(unit, unit), ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    triples = away[:, :, None] & away[None, :, :] & away[:, None, :]
    result = {}
    for name, distance in (("cosine", 1 - found["cosine"]), ("l2", -found["l2"])):
        shorter = distance[:, :, None] + distance[None, :, :] < distance[:, None, :] - 1e-9
        result[f"{name}_broken_share"] = float((shorter & triples).sum() / triples.sum())
    return result


def self_values(vectors: Tensor) -> dict[str, float]:
    """A vector's cosine with itself in FP32 and BF16, and its distance to itself by the expanded formula."""
    unit = F.normalize(vectors.float(), dim=1)
    own = (unit * unit).sum(1)
    short = unit.bfloat16()
    expanded = (unit.square().sum(1)[:, None] + unit.square().sum(1) - 2 * unit @ unit.T).diagonal()
    return {
        "self_unequal_share": float((own != 1).double().mean()),
        "self_above_share": float((own > 1).double().mean()),
        "self_difference": float((own - 1).abs().max()),
        "bf16_self_difference": float(((short.float() ** 2).sum(1) - 1).abs().max()),
        "expanded_self_difference": float(expanded.abs().max().sqrt()),
    }


# --8<-- [start:hidden]
@torch.inference_mode()
def hidden_states(decoder: Decoder, sentences: list[str], batch: int = 32) -> tuple[Tensor, Tensor]:
    """One inner token of each sentence, (input and layers, sentences, hidden), and means of the last layer.

    Padding stands on the right, where causal attention never looks.
    """
    weight, tokens = decoder.embed_tokens.weight, [smollm2.tokenizer().encode(s).ids for s in sentences]
    order = sorted(range(len(sentences)), key=lambda i: len(tokens[i]))
    inner, means = [], []
    for start in range(0, len(order), batch):
        chosen = [tokens[i] for i in order[start : start + batch]]
        longest = max(map(len, chosen))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in chosen], device=weight.device)
        lengths = torch.tensor([len(row) for row in chosen], device=weight.device)
        rows = torch.arange(len(ids), device=weight.device)
        x = decoder.embed_tokens(ids)
        table, states = rotation(decoder.geometry, 0, longest, x), [x[rows, lengths // 2]]
        for block in decoder.layers:
            x = block(x, *table)
            states.append(x[rows, lengths // 2])
        real = (torch.arange(longest, device=weight.device) < lengths[:, None])[..., None]
        means.append((decoder.norm(x) * real).sum(1) / lengths[:, None])
        inner.append(torch.stack(states))
    back = torch.tensor(order, device=weight.device).argsort()
    return torch.cat(inner, 1)[:, back], torch.cat(means)[back]


# --8<-- [end:hidden]


def mean_cosine(vectors: Tensor) -> float:
    """Mean cosine of different rows."""
    unit, n = F.normalize(vectors.double(), dim=-1), len(vectors)
    return float(((unit @ unit.T).sum() - n) / (n * (n - 1)))


def layer_columns(states: Tensor) -> dict[str, list]:
    """By layer: the mean cosine of tokens from different sentences, as they are and with their mean taken off."""
    columns: dict[str, list] = {"layer_count": [], "cosine_difference": [], "vectors": []}
    for layer, vectors in enumerate(states):
        for name, rows in (("as they are", vectors), ("mean taken off", vectors - vectors.mean(0))):
            columns["layer_count"].append(layer)
            columns["cosine_difference"].append(mean_cosine(rows))
            columns["vectors"].append(name)
    return columns


def layer_values(columns: dict[str, list]) -> dict[str, float]:
    """The chart's ends: the table's rows, the most alike layer, and the last."""
    plain = columns["cosine_difference"][::2]
    return {"entering_difference": plain[0], "most_difference": max(plain), "last_difference": plain[-1]}


def best_threshold(cosines: Tensor, alike: Tensor) -> float:
    """The cosine that splits pairs alike from the others with the fewest errors: midway between two pairs."""
    ordered, order = cosines.sort()
    right = alike[order].double()
    errors = torch.cat((torch.zeros(1), right.cumsum(0))) + torch.cat((torch.zeros(1), (1 - right).cumsum(0))).neg()
    at = int(errors.argmin())
    return float((ordered[max(at - 1, 0)] + ordered[min(at, len(ordered) - 1)]) / 2)


def threshold_values(name: str, first: Tensor, second: Tensor, score: Tensor) -> dict[str, float]:
    """One model's cosines: of unrelated sentences, of pairs alike, the threshold that splits, the correlation."""
    cosines = F.cosine_similarity(first, second).double().cpu()
    strangers = F.cosine_similarity(first, second.roll(len(second) // 2, 0)).double().cpu()
    ranked, error = spearman_error(cosines, score)
    return {
        f"{name}_strangers_difference": float(strangers.mean()),
        f"{name}_strangers_above_share": float((strangers >= 0.8).double().mean()),
        f"{name}_alike_above_share": float((cosines[score >= 4] >= 0.8).double().mean()),
        f"{name}_threshold_difference": best_threshold(cosines, score >= 3),
        f"{name}_people_difference": ranked,
        f"{name}_people_error_difference": error,
    }


def model_values(vectors: dict[str, Tensor], score: Tensor) -> dict[str, float]:
    """Every model's `threshold_values`; vectors hold the first sentences, then the second."""
    found: dict[str, float] = {}
    for name, both in vectors.items():
        first, second = both.chunk(2)
        found |= threshold_values(name, first, second, score)
    return found


def model_columns(values: dict[str, float]) -> dict[str, list]:
    """The table of models."""
    names = {"minilm": "MiniLM", "smollm2": "SmolLM2, mean of tokens", "centred": "the same, mean taken off"}
    kinds = ["strangers_difference", "strangers_above_share", "alike_above_share", "threshold_difference"]
    kinds += ["people_difference", "people_error_difference"]
    return {"vectors": list(names.values()), **{kind: [values[f"{n}_{kind}"] for n in names] for kind in kinds}}


def model_vectors(rows: Pairs, model: Encoder, decoder: Decoder) -> tuple[dict[str, Tensor], Tensor]:
    """Sentence vectors (pairs of first then second) of MiniLM and SmolLM2, and SmolLM2's states by layer."""
    sentences = rows.first + rows.second
    states, means = hidden_states(decoder, sentences)
    return {"minilm": pooled(model, sentences), "smollm2": means, "centred": means - means.mean(0)}, states


def scale(small: bool) -> tuple[Pairs, Pairs, int]:
    """Pairs for MiniLM, fewer for SmolLM2, and how many random vectors."""
    test = similarity.pairs("test")
    steps = (20, 100) if small else (4, 20)
    return similarity.thinned(test, steps[0]), similarity.thinned(test, steps[1]), 2000 if small else 10_000


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` has fewer pairs and draws."""
    target = pick(device)
    model, decoder = encoder(device=target), smollm2.decoder(torch.float32, target)
    rows, fewer, draws = scale(small)
    raw = pooled(model, rows.first + rows.second)
    first, second = raw.chunk(2)
    vectors = distinct(raw)
    found, states = model_vectors(fewer, model, decoder)
    return {
        **unit_values(vectors),
        **raw_values(vectors, decoder.embed_tokens.weight, queries=32 if small else 256),
        **people_values(first, second, rows.score),
        **random_values(random_columns(draws)),
        **mips_values(decoder.embed_tokens.weight[::24].double(), decoder.embed_tokens.weight[7::768].double()),
        **metric_values(vectors, 100 if small else 160),
        **self_values(raw),
        **layer_values(layer_columns(states)),
        **model_values(found, fewer.score),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Lengths of one where they should differ, one model in place of two, positive draws, distances for cosines."""
    values, target = measure(small=small, device=device), pick(device)
    rows, *_ = scale(small)
    unit = F.normalize(pooled(encoder(device=target), rows.first + rows.second))
    first, second = unit.chunk(2)
    matrix = F.normalize(smollm2.decoder(torch.float32, target).embed_tokens.weight)
    positive = torch.rand(2000, 384, generator=torch.Generator().manual_seed(0))
    spread = float(F.cosine_similarity(positive[::2], positive[1::2]).square().mean().sqrt())
    same = {name: values[name.replace("smollm2", "minilm")] for name in values if name.startswith("smollm2")}
    return same | {
        "identity_difference": float((nearness(positive, positive)["l2"] ** 2 - 2).abs().max()),
        **raw_values(distinct(unit), matrix, queries=32),
        **people_values(first, second, rows.score),
        "random_off_share": abs(spread * 384**0.5 - 1),
        "cosine_broken_share": values["l2_broken_share"],
        "self_difference": float((positive.square().sum(1) - 1).abs().max()),
        **{f"{name}_difference": mean_cosine(torch.randn(99, 576)) for name in ("entering", "most", "last")},
    }


if __name__ == "__main__":
    from measured.values import report

    report("embeddings/similarity_measures", measure())

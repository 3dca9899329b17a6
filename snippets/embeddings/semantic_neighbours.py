"""Does the vector carry meaning?

Claim: a row of SmolLM2's input matrix lies nearest to rows of words that are used alike, far beyond shuffled labels,
rows of other tokens and random vectors. Analogies are weaker than their fame: the row nearest to b - a + c is mostly
a word of the question, and a shortlist of answers solves some of them without any offset.

Run: python -m snippets.embeddings.semantic_neighbours
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
import functools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from snippets.instruments.device import pick
from snippets.models import smollm2

# --8<-- [end:imports]

# --8<-- [start:words]
CATEGORIES = {
    "countries": "France Germany Italy Spain Portugal Russia China Japan India Brazil Mexico Canada",
    "months": "January February March April May June July August September October November December",
    "numbers": "two three four five six seven eight nine ten eleven twelve twenty",
    "animals": "dog cat horse cow pig sheep goat lion tiger bear wolf fox",
    "colours": "red green blue yellow orange purple pink brown black white gray violet",
    "body": "head hand foot leg arm nose ear eye mouth neck knee finger",
    "food": "bread cheese butter rice meat milk sugar salt honey soup cake chocolate",
    "work": "doctor lawyer teacher nurse engineer farmer soldier artist writer actor painter scientist",
    "family": "mother father brother sister uncle aunt cousin daughter son wife husband grandmother",
}
VERBS = (  # base, past, -ing
    "walk walked walking talk talked talking work worked working play played playing call called calling "
    "help helped helping write wrote writing give gave giving take took taking make made making find found finding "
    "know knew knowing think thought thinking speak spoke speaking run ran running eat ate eating "
    "drive drove driving grow grew growing buy bought buying build built building"
)
SEMANTIC = {
    "capital": "France Paris Germany Berlin Italy Rome Spain Madrid Portugal Lisbon Russia Moscow China Beijing "
    "Japan Tokyo Egypt Cairo Sweden Stockholm Norway Oslo Poland Warsaw Greece Athens Iran Tehran Cuba Havana "
    "Peru Lima",
    "gender": "king queen man woman boy girl father mother brother sister son daughter uncle aunt husband wife "
    "actor actress prince princess he she his her himself herself men women boys girls sons daughters",
    "opposite": "hot cold big small good bad high low long short fast slow old new early late open closed rich poor "
    "strong weak light dark happy sad hard soft near far true false",
}
SYNTACTIC = {
    "country": "France French Germany German Italy Italian Spain Spanish Russia Russian China Chinese Japan Japanese "
    "India Indian Brazil Brazilian Mexico Mexican Canada Canadian Egypt Egyptian Sweden Swedish Norway Norwegian "
    "Poland Polish Turkey Turkish",
    "plural": "dog dogs cat cats car cars house houses book books tree trees child children woman women foot feet "
    "city cities student students river rivers table tables door doors school schools king kings",
    "degree": "big bigger small smaller fast faster slow slower high higher long longer strong stronger "
    "weak weaker old older good better bad worse cold colder dark darker easy easier hard harder deep deeper",
    "past": " ".join(word for i, word in enumerate(VERBS.split()[:48]) if i % 3 != 2),
    "gerund": " ".join(word for i, word in enumerate(VERBS.split()[:48]) if i % 3 != 1),
}
PAIRS = 16  # of each relation
RARE = (
    "aardvark armadillo badger beaver camel donkey ferret giraffe hedgehog hamster "
    "kangaroo leopard lizard ostrich otter panda penguin raccoon squirrel zebra"
)
# --8<-- [end:words]


# --8<-- [start:matrix]
@functools.cache
def matrix(device: str | torch.device = "cpu") -> Tensor:
    """SmolLM2's input matrix in FP32, (vocabulary, hidden); the head reads the same one."""
    return smollm2.load_state()["model.embed_tokens.weight"].to(device)


@functools.cache
def tokenizer() -> Tokenizer:
    """SmolLM2's, read once."""
    return smollm2.tokenizer()


def token_ids(words: str) -> Tensor:
    """The single token of each word with its leading space, (words,); ValueError where a word takes several."""
    found = [tokenizer().encode(f" {word}").ids for word in words.split()]
    if long := [word for word, ids in zip(words.split(), found, strict=True) if len(ids) > 1]:
        raise ValueError(f"of more than one token: {', '.join(long)}")
    return torch.tensor(found)[:, 0]


def labelled() -> tuple[Tensor, Tensor]:
    """Tokens of all categories, and the category of each: (words,) both."""
    ids = [token_ids(words) for words in CATEGORIES.values()]
    return torch.cat(ids), torch.cat([torch.full_like(each, label) for label, each in enumerate(ids)])


# --8<-- [end:matrix]


# --8<-- [start:neighbours]
NEIGHBOURS = 5


def nearest(rows: Tensor, never: Tensor) -> Tensor:
    """Of each row, the nearest others by cosine, best first: (words, NEIGHBOURS). `never` (words, words) bars some."""
    unit = F.normalize(rows, dim=1)
    return (unit @ unit.T).masked_fill(never, -torch.inf).topk(NEIGHBOURS, dim=1).indices


def shares(rows: Tensor, labels: Tensor, never: Tensor | None = None) -> Tensor:
    """Share of each word's nearest that bear its label, (words,); a word is not its own neighbour."""
    itself = torch.eye(len(rows), dtype=torch.bool)
    return (labels[nearest(rows, itself if never is None else never)] == labels[:, None]).double().mean(1)


def permuted(rows: Tensor, labels: Tensor, draws: int) -> Tensor:
    """The mean share again with the labels dealt out anew, (draws,): its mean is chance, its spread the error."""
    found = nearest(rows, torch.eye(len(rows), dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    dealt = torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(draws)])
    return (dealt[:, found] == dealt[:, :, None]).double().mean((1, 2))


def neighbour_values(table: Tensor, draws: int = 1000) -> dict[str, float]:
    """Category shares of the table's own rows and of four controls."""
    ids, labels = labelled()
    rows, generator = table[ids].cpu(), torch.Generator().manual_seed(1)
    own, chance = shares(rows, labels), permuted(rows, labels, draws)
    others = [table[torch.randperm(len(table), generator=generator)[: len(ids)]].cpu() for _ in range(20)]
    # Byte-pair ids follow frequency in the tokenizer's texts, so a word's successors are about as frequent.
    frequent = [table[ids + step].cpu() for step in range(1, 21)]
    normal = [torch.randn(rows.shape, generator=generator) for _ in range(20)]
    control = {"other_rows": others, "frequent_rows": frequent, "normal": normal}
    return {
        "category_share": float(own.mean()),
        "category_error_share": standard_error(own),
        "shuffled_share": float(chance.mean()),
        "shuffled_error_share": float(chance.std()),
        **{f"{name}_share": mean([float(shares(r, labels).mean()) for r in drawn]) for name, drawn in control.items()},
    }


# --8<-- [end:neighbours]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of (draws,)."""
    return float(values.std() / len(values) ** 0.5)


# --8<-- [start:forms]
def form_values(table: Tensor) -> dict[str, float]:
    """Verbs in three forms: is the nearest row the same verb, and do the nearest *other* verbs have the same form?"""
    rows = table[token_ids(VERBS)].cpu()
    verb, form = torch.arange(len(rows)) // 3, torch.arange(len(rows)) % 3
    same_verb = verb[:, None] == verb
    own = shares(rows, form, same_verb)
    closest = nearest(rows, torch.eye(len(rows), dtype=torch.bool))[:, 0]
    return {
        "form_share": float(own.mean()),
        "form_error_share": standard_error(own),
        "same_verb_share": float((verb[closest] == verb).double().mean()),
    }


# --8<-- [end:forms]


# --8<-- [start:whole]
@functools.cache
def spellings() -> list[str]:
    """Every token's text without surrounding spaces and in small letters."""
    return [tokenizer().decode([i]).strip().lower() for i in range(smollm2.GEOMETRY.vocabulary)]


def variant_values(table: Tensor) -> dict[str, float]:
    """Against the whole vocabulary: how often the nearest row is the same word in another spelling."""
    ids, texts = labelled()[0].to(table.device), spellings()
    scores = F.normalize(table[ids], dim=1) @ F.normalize(table, dim=1).T
    found = scores.scatter(1, ids[:, None], -torch.inf).argmax(1)
    same = [texts[i] == texts[j] for i, j in zip(ids.tolist(), found.tolist(), strict=True)]
    return {"variant_share": mean(same)}


# --8<-- [end:whole]


# --8<-- [start:analogies]
def analogies(unit: Tensor, pairs: Tensor) -> dict[str, Tensor]:
    """Ask each pair (c, d) by every other pair (a, b): whose row is nearest to b - a + c? Shares by asked pair.

    `unit` holds rows of norm one, (vocabulary, hidden); `pairs` tokens, (pairs, members). The norm of b - a + c
    ranks nothing, so the cosines of its parts are added.
    """
    a, b = pairs.T.to(unit.device)
    asked, given = torch.where(~torch.eye(len(pairs), dtype=torch.bool, device=unit.device))
    near_a, near_b = unit[a] @ unit.T, unit[b] @ unit.T  # (pairs, vocabulary)
    row, after = torch.arange(len(asked), device=unit.device), (given + 1) % len(pairs)
    wrong = torch.where(after == asked, (given + 2) % len(pairs), after)  # another pair's b: no offset of the relation

    def best(offset_to: Tensor, *, exclude: bool) -> Tensor:
        scores = near_b[offset_to] - near_a[given] + near_a[asked]
        for word in (a[given], b[offset_to], a[asked]) if exclude else ():
            scores[row, word] = -torch.inf
        return scores.argmax(1)

    def by_asked(hit: Tensor) -> Tensor:
        return hit.double().view(len(pairs), -1).mean(1).cpu()

    free, members = best(given, exclude=False), torch.cat([a, b])
    alone = near_a.scatter(1, a[:, None], -torch.inf)  # no offset: whose row is nearest to c?
    return {
        "excluded": by_asked(best(given, exclude=True) == b[asked]),
        "free": by_asked(free == b[asked]),
        "echo": by_asked(free == a[asked]),
        "wrong_offset": by_asked(best(wrong, exclude=True) == b[asked]),
        "alone": by_asked(alone.argmax(1) == b),
        "listed_alone": by_asked(members[alone[:, members].argmax(1)] == b),
    }


# --8<-- [end:analogies]


def relations(table: Tensor, pairs: int = PAIRS) -> dict[str, dict[str, Tensor]]:
    """Every relation's shares."""
    unit = F.normalize(table, dim=1)
    every = {name: token_ids(words).view(-1, 2)[:pairs] for name, words in (SEMANTIC | SYNTACTIC).items()}
    return {name: analogies(unit, tokens) for name, tokens in every.items()}


def relation_columns(found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, list]:
    """The shares of each relation as columns."""
    names = {"excluded": "offset", "wrong_offset": "wrong offset", "free": "nothing excluded"}
    return {
        "relation": [relation for relation in found for _ in names],
        "asked": [shown for _ in found for shown in names.values()],
        "hit_share": [float(found[relation][name].mean()) for relation in found for name in names],
    }


def relation_values(found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Means over relations, with the error over asked pairs where a claim needs it."""
    values = {
        f"{kind}_share": mean([float(shares[kind].mean()) for shares in found.values()])
        for kind in ("excluded", "free", "echo", "wrong_offset", "alone")
    }
    for group, members in (("semantic", SEMANTIC), ("syntactic", SYNTACTIC)):
        hits = torch.cat([found[name]["excluded"] for name in members])
        values |= {f"{group}_share": float(hits.mean()), f"{group}_error_share": standard_error(hits)}
    forms = ("plural", "past", "gerund")
    values["listed_forms_share"] = mean([float(found[name]["listed_alone"].mean()) for name in forms])
    return values | {"opposite_share": float(found["opposite"]["listed_alone"].mean())}


# --8<-- [start:plane]
def plane(table: Tensor) -> tuple[Tensor, float]:
    """The words of all categories on their first two principal axes, (words, axes), and the variance kept."""
    rows = table[labelled()[0]].double().cpu()
    rows = rows - rows.mean(0)
    _, strengths, axes = torch.linalg.svd(rows, full_matrices=False)
    axes = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()  # a fixed sign
    return rows @ axes.T, float(strengths[:2].square().sum() / strengths.square().sum())


# --8<-- [end:plane]


def plane_columns(table: Tensor) -> dict[str, list]:
    """Points of six categories, which a chart can tell apart."""
    points, labels = plane(table)[0], labelled()[1]
    kept, names = labels < 6, list(CATEGORIES)
    return {
        "first_difference": points[kept, 0].tolist(),
        "second_difference": points[kept, 1].tolist(),
        "category": [names[label] for label in labels[kept].tolist()],
    }


def plane_values(table: Tensor) -> dict[str, float]:
    """What the plane keeps: of the variance, and of the neighbours."""
    points, kept = plane(table)
    itself, labels = torch.eye(len(points), dtype=torch.bool), labelled()[1]
    near = torch.cdist(points, points).masked_fill(itself, torch.inf).topk(NEIGHBOURS, largest=False).indices
    return {"plane_share": kept, "plane_category_share": float((labels[near] == labels[:, None]).double().mean())}


# --8<-- [start:prepared]
def prepared(table: Tensor) -> dict[str, Tensor]:
    """The matrix as stored, without its mean row, and without its strongest direction as well (arXiv:1702.01417)."""
    centred = table - table.mean(0)
    strongest = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1:]
    return {"stored": table, "centred": centred, "stripped": centred - (centred @ strongest) @ strongest.T}


# --8<-- [end:prepared]


def prepared_columns(tables: Mapping[str, Tensor], hits: Mapping[str, Mapping[str, float]]) -> dict[str, list]:
    """Cosine of random rows, shares of neighbours and hits of analogies by preparation."""
    (ids, labels), rows = labelled(), []
    for name, table in tables.items():
        drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(2))[:1000]
        unit = F.normalize(table[drawn.to(table.device)], dim=1)
        cosine = float((unit.sum(0).square().sum() - len(unit)) / (len(unit) * (len(unit) - 1)))
        own, form = float(shares(table[ids].cpu(), labels).mean()), form_values(table)["form_share"]
        rows.append((cosine, own, form, hits[name]["semantic_share"], hits[name]["syntactic_share"]))
    names = ("cosine_ratio", "category_share", "form_share", "semantic_share", "syntactic_share")
    shown = ["as stored", "mean removed", "mean and strongest direction removed"]
    return {"matrix": shown, **dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))}


def counts() -> dict[str, int]:
    """Sizes of the lists, and how many of the rarer animals have a row of their own."""
    ids, labels = labelled()
    rare = [len(tokenizer().encode(f" {word}").ids) for word in RARE.split()]
    return {
        "words_count": len(ids),
        "categories_count": int(labels.max()) + 1,
        "category_words_count": int((labels == 0).sum()),
        "forms_count": 3,
        "relations_count": len(SEMANTIC | SYNTACTIC),
        "pairs_count": PAIRS,
        "rare_count": len(rare),
        "rare_single_count": rare.count(1),
    }


def table_values(table: Tensor, pairs: int, draws: int) -> dict[str, float]:
    """Everything that depends on the matrix."""
    tables = prepared(table)
    hits = {name: relation_values(relations(each, pairs)) for name, each in tables.items()}
    return {
        **neighbour_values(table, draws),
        **form_values(table),
        **variant_values(table),
        **hits["stored"],
        **plane_values(table),
        "random_rows_ratio": prepared_columns(tables, hits)["cosine_ratio"][0],
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` asks fewer pairs."""
    pairs, draws = (6, 200) if small else (PAIRS, 1000)
    return {**counts(), **table_values(matrix(str(pick(device))), pairs, draws)}


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The same on shuffled rows: every token has the vector of another."""
    table = matrix(str(pick(device)))
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(3))
    pairs, draws = (6, 200) if small else (PAIRS, 1000)
    return {**counts(), **table_values(table[order.to(table.device)], pairs, draws)}


if __name__ == "__main__":
    from measured.values import report

    report("embeddings/semantic_neighbours", measure())

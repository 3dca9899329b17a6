"""How do token ids become vectors?

Claim: an id is the number of a row. The lookup copies that row; the textbook's one-hot vector times the matrix gives
the same bits and reads every row to do it. It stops giving the same bits where the product may round its inputs.

Run: python -m snippets.embeddings.lookup
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments.clock import interleave, refuse_beyond_peak
from snippets.instruments.device import pick
from snippets.instruments.memory import storage_bytes
from snippets.models import shapes, smollm2, texts
from snippets.models.decoder import Decoder
from snippets.models.quantized import QuantizedWeight, quantize_rows_int8

# --8<-- [end:imports]
# isort: split
from measured.values import report

# --8<-- [start:text]
PARAGRAPH = 2  # of the presidential message: a single sentence that repeats some of its words


def sentence_ids(device: torch.device | str = "cpu") -> Tensor:
    """Token ids of a sentence that is newer than the model, int64 (tokens,)."""
    return smollm2.encode(texts.address().split("\n\n")[PARAGRAPH], device)[0]


# --8<-- [end:text]


# --8<-- [start:tokens]
def token_columns(ids: Tensor, matrix: Tensor) -> dict[str, list]:
    """Each token, its id, and how far into the matrix its row begins, read from the row's address."""
    tokenizer = smollm2.tokenizer()
    return {
        "token": [repr(tokenizer.decode([token])) for token in ids.tolist()],
        "id": [str(token) for token in ids.tolist()],
        "offset_bytes": [matrix[token].data_ptr() - matrix.data_ptr() for token in ids.tolist()],
    }


def matrix_values(ids: Tensor, matrix: Tensor) -> dict[str, int]:
    """What sentence and matrix count, and the rows that do not begin at their id times the bytes of a row."""
    row_bytes = matrix[0].nbytes
    offsets = token_columns(ids, matrix)["offset_bytes"]
    return {
        "sentence_tokens": len(ids),
        "distinct_tokens": len(ids.unique()),
        "vocabulary_count": smollm2.tokenizer().get_vocab_size(),
        "rows_count": matrix.shape[0],
        "hidden_count": matrix.shape[1],
        "element_bytes": matrix.dtype.itemsize,
        "row_bytes": row_bytes,
        "matrix_bytes": storage_bytes(matrix),
        "misplaced_count": sum(o != i * row_bytes for o, i in zip(offsets, ids.tolist(), strict=True)),
    }


# --8<-- [end:tokens]


# --8<-- [start:lookup]
Operation = Callable[[Tensor, Tensor], Tensor]


def lookup(ids: Tensor, matrix: Tensor) -> Tensor:
    """Rows of a matrix (vocabulary, hidden) by id: (tokens,) → (tokens, hidden). A copy, no arithmetic."""
    return F.embedding(ids, matrix)


def differing(a: Tensor, b: Tensor) -> int:
    """Elements whose bits differ: stricter than ==, for which zero equals minus zero."""
    bits = {2: torch.int16, 4: torch.int32}[a.dtype.itemsize]
    return int((a.view(bits) != b.view(bits)).sum())


# --8<-- [end:lookup]


# --8<-- [start:product]
def one_hot(ids: Tensor, matrix: Tensor) -> Tensor:
    """A row for each token, all zeros but a one in its id's column: (tokens, vocabulary), the matrix's dtype."""
    zeros = torch.zeros(len(ids), len(matrix), dtype=matrix.dtype, device=matrix.device)
    return zeros.scatter_(1, ids.unsqueeze(1), 1)


def one_hot_product(ids: Tensor, matrix: Tensor) -> Tensor:
    """The same rows as a product: (tokens, vocabulary) times (vocabulary, hidden)."""
    return one_hot(ids, matrix) @ matrix


# --8<-- [end:product]


# --8<-- [start:equal]
def equal_values(ids: Tensor, full: Tensor) -> dict[str, int]:
    """Elements in which product and lookup differ, and in which a repeated token differs from its first copy."""
    short, rows = full.bfloat16(), lookup(ids, full)
    first = [ids.tolist().index(token) for token in ids.tolist()]
    return {
        "fp32_differing_count": differing(one_hot_product(ids, full), rows),
        "bf16_differing_count": differing(one_hot_product(ids, short), lookup(ids, short)),
        "repeated_differing_count": differing(rows, rows[first]),
    }


# --8<-- [end:equal]


# --8<-- [start:read]
def rows_read(operation: Operation, ids: Tensor, matrix: Tensor) -> int:
    """How many rows of the matrix enter the operation's result, found by poison.

    A NaN survives every sum, even times zero. Each pass poisons as many rows as there are columns, every row in a
    column of its own: a column of the result is NaN if its row was read.
    """
    vocabulary, hidden = matrix.shape
    poisoned, read = matrix.clone(), 0
    for start in range(0, vocabulary, hidden):
        rows = torch.arange(start, min(start + hidden, vocabulary), device=matrix.device)
        columns = rows - start
        poisoned[rows, columns] = torch.nan
        read += int(operation(ids, poisoned).isnan().any(0).sum())
        poisoned[rows, columns] = matrix[rows, columns]
    return read


def read_values(ids: Tensor, matrix: Tensor) -> dict[str, int]:
    """Rows that each way reads, by poison, and bytes that it reads, by formula and storage."""
    return {
        "lookup_rows_count": rows_read(lookup, ids, matrix),
        "product_rows_count": rows_read(one_hot_product, ids, matrix),
        "lookup_bytes": len(ids) * matrix.shape[1] * matrix.dtype.itemsize,
        "product_bytes": storage_bytes([matrix, one_hot(ids, matrix)]),
    }


# --8<-- [end:read]


# --8<-- [start:time]
def timed_values(ids: Tensor, matrix: Tensor, rounds: int, baseline: Operation = lookup) -> dict[str, float]:
    """Seconds of the product over seconds of the lookup, in turn; the one-hot rows are made beforehand."""
    hot = one_hot(ids, matrix)
    timed = interleave(
        {"product": lambda: hot @ matrix, "lookup": lambda: baseline(ids, matrix)}, device=matrix.device, rounds=rounds
    )
    flops = 2.0 * len(ids) * matrix.numel()
    refuse_beyond_peak(timed.seconds("product"), flops=flops, device=matrix.device, dtype=matrix.dtype)
    return {
        "product_over_lookup_ratio": timed.ratio("product", "lookup"),
        "lookup_seconds": timed.seconds("lookup"),
        "product_seconds": timed.seconds("product"),
    }


# --8<-- [end:time]


# --8<-- [start:precision]
@contextmanager
def matmul_precision(level: str) -> Iterator[None]:
    """PyTorch's precision of FP32 products, "highest", "high" or "medium", put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def relative_difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two elements over the second one's size; zeros of the second are left out."""
    a, b = a.double(), b.double()
    return float(((a - b).abs() / b.abs())[b != 0].max())


def precision_values(ids: Tensor, matrix: Tensor, product: Operation = one_hot_product) -> dict[str, float]:
    """An FP32 product that may round its inputs against the lookup, and how many elements BF16 cannot hold."""
    rows = lookup(ids, matrix)
    with torch.autocast(matrix.device.type, dtype=torch.bfloat16):
        automatic = product(ids, matrix).float()
    with matmul_precision("medium"):
        medium = product(ids, matrix)
    return {
        "rounding_differing_count": differing(rows.bfloat16().float(), rows),
        "autocast_differing_count": differing(automatic, rows),
        "autocast_relative_difference": relative_difference(automatic, rows),
        "medium_differing_count": differing(medium, rows),
        "medium_relative_difference": relative_difference(medium, rows),
    }


# --8<-- [end:precision]


# --8<-- [start:ids]
def accepted_count(operation: Operation, ids: list[int], matrix: Tensor) -> int:
    """How many of the ids the operation takes without an error, one by one.

    On a CPU only: an accelerator finds out later, in an assertion that ends the process's use of it.
    """
    taken = 0
    for token in ids:
        try:
            operation(torch.tensor([token]), matrix.cpu())
            taken += 1
        except IndexError:
            pass
    return taken


def foreign_id_values(matrix: Tensor) -> dict[str, int]:
    """Ids that name no row, one below and one above: what the lookup takes, what plain indexing takes."""
    foreign = [-1, len(matrix)]
    return {
        "lookup_accepted_count": accepted_count(lookup, foreign, matrix),
        "indexing_accepted_count": accepted_count(lambda ids, rows: rows[ids], foreign, matrix),
    }


# --8<-- [end:ids]


# --8<-- [start:options]
def changed_rows(ids: Tensor, matrix: Tensor, max_norm: float | None) -> int:
    """Rows of the matrix itself that a lookup with `max_norm` has rewritten."""
    kept = matrix.clone()
    F.embedding(ids, kept, max_norm=max_norm)
    return int((kept != matrix).any(1).sum())


def option_values(ids: Tensor, matrix: Tensor) -> dict[str, int]:
    """What nn.Embedding's options do to a lookup, and what gathering quantized rows gives."""
    norm = float(lookup(ids, matrix).norm(dim=1).min()) / 2  # smaller than that of every row looked up
    packed = quantize_rows_int8(matrix)
    taken = QuantizedWeight(packed.packed[ids], packed.scale[ids], (len(ids), matrix.shape[1]), packed.group)
    padded = F.embedding(ids, matrix, padding_idx=int(ids[0]))
    return {
        "plain_changed_count": changed_rows(ids, matrix, None),
        "max_norm_changed_count": changed_rows(ids, matrix, norm),
        "padding_differing_count": differing(padded, lookup(ids, matrix)),
        "int8_row_bytes": taken.nbytes // len(ids),
        "int8_differing_count": differing(taken.dequantize(), lookup(ids, packed.dequantize())),
    }


# --8<-- [end:options]


# --8<-- [start:gradient]
def gradient(ids: Tensor, matrix: Tensor, *, sparse: bool) -> Tensor:
    """The matrix's gradient of the sum over all rows looked up: each row's is how often its token stands there."""
    weight = matrix.clone().requires_grad_()
    F.embedding(ids, weight, sparse=sparse).sum().backward()
    assert weight.grad is not None
    return weight.grad


def gradient_values(ids: Tensor, matrix: Tensor) -> dict[str, int]:
    """Bytes of the gradient, dense and sparse, and the rows of it that are not zero."""
    dense, sparse = gradient(ids, matrix, sparse=False), gradient(ids, matrix, sparse=True)
    occurrences = torch.bincount(ids, minlength=len(matrix)).to(dense.dtype)
    return {
        "dense_gradient_bytes": storage_bytes(dense),
        "sparse_gradient_bytes": storage_bytes(sparse),
        "gradient_rows_count": int((dense != 0).any(1).sum()),
        "scatter_differing_count": int((dense != occurrences.unsqueeze(1)).sum()),
    }


# --8<-- [end:gradient]


# --8<-- [start:share]
def share_values(model: Decoder) -> dict[str, int]:
    """Parameters of the model and of its embedding, whether the head is the same memory, rows that are distinct."""
    matrix = model.embed_tokens.weight
    return {
        "total_parameters_count": sum(parameter.numel() for parameter in model.parameters()),
        "embedding_parameters_count": matrix.numel(),
        "head_offset_bytes": abs(model.lm_head.weight.data_ptr() - matrix.data_ptr()),
        "model_bytes": storage_bytes(model),
        "distinct_rows_count": len(matrix.unique(dim=0)),
    }


# --8<-- [end:share]


# --8<-- [start:path]
@torch.inference_mode()
def first_layer(model: Decoder, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What enters and what leaves the model's first layer, (tokens, hidden) each."""
    seen: list[Tensor] = []
    watch = model.layers[0].register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0][0], output[0])))
    try:
        model(ids.unsqueeze(0), last_only=True)
    finally:
        watch.remove()
    return seen[0], seen[1]


def path_values(model: Decoder, ids: Tensor) -> dict[str, int]:
    """How the model's own input compares with the lookup, and what a layer makes of one token in two places."""
    entering, leaving = first_layer(model, ids)
    tokens = ids.tolist()
    pairs = [(tokens.index(token), place) for place, token in enumerate(tokens) if token in tokens[:place]]
    return {
        "input_differing_count": differing(entering, lookup(ids, model.embed_tokens.weight)),
        "pairs_count": len(pairs),
        "pairs_equal_before_count": sum(torch.equal(entering[a], entering[b]) for a, b in pairs),
        "pairs_equal_after_count": sum(torch.equal(leaving[a], leaving[b]) for a, b in pairs),
    }


# --8<-- [end:path]


# --8<-- [start:shapes]
def shape_columns(element_bytes: int = 2) -> dict[str, list]:
    """One row and the whole matrix of public shapes."""
    models = [shapes.SMOLLM2_135M, shapes.LLAMA_2_7B, shapes.LLAMA_3_8B, shapes.LLAMA_3_70B, shapes.GEMMA_7B]
    return {
        "model": [m.name for m in models],
        "vocabulary_count": [m.vocabulary for m in models],
        "hidden_count": [m.hidden for m in models],
        "row_bytes": [m.hidden * element_bytes for m in models],
        "matrix_bytes": [m.vocabulary * m.hidden * element_bytes for m in models],
    }


def llama_values(element_bytes: int = 2) -> dict[str, int]:
    """Llama-3-8B's row and matrix, from its shape."""
    llama = shapes.LLAMA_3_8B
    row_bytes = llama.hidden * element_bytes
    return {"llama_row_bytes": row_bytes, "llama_matrix_bytes": llama.vocabulary * row_bytes}


# --8<-- [end:shapes]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` times fewer rounds. The model is the real one in either case."""
    target = pick(device)
    model, ids = smollm2.decoder(torch.float32, target), sentence_ids(target)
    full = model.embed_tokens.weight
    matrix = full.to(dtype or torch.bfloat16)
    return {
        **llama_values(matrix.dtype.itemsize),
        **matrix_values(ids, matrix),
        **equal_values(ids, full),
        **read_values(ids, matrix),
        **timed_values(ids, matrix, rounds=6 if small else 21),
        **precision_values(ids, full),
        **foreign_id_values(full),
        **option_values(ids, full),
        **gradient_values(ids, full),
        **share_values(model),
        **path_values(model, ids),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The lookup replaced by the one-hot product; under lower precision, each id by its neighbour."""
    target = pick(device)
    full, ids = smollm2.load_state()["model.embed_tokens.weight"].to(target), sentence_ids(target)
    matrix = full.to(dtype or torch.bfloat16)
    return {
        **timed_values(ids, matrix, rounds=6 if small else 21, baseline=one_hot_product),
        **precision_values(ids, full, product=lambda rows, table: one_hot_product(rows - 1, table)),
    }


if __name__ == "__main__":
    report("embeddings/lookup", measure())

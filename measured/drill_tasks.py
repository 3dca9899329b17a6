"""The coding drills: which function of the project each blanks, the tests that judge it, and its hints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Drill:
    """What is asked: definitions of one module, the tests that judge them, and hints from gentle to plain."""

    name: str
    task: str
    module: str  # as a path below the project's root
    definitions: tuple[str, ...]  # `function`, or `Class.method`
    tests: tuple[str, ...]
    hints: tuple[str, ...]
    hidden: tuple[str, ...] = ()  # names of the module that would give the answer away

    @property
    def dotted(self) -> str:
        """The module's import name."""
        return self.module.removesuffix(".py").replace("/", ".")


DRILLS = (
    Drill(
        "attention",
        "Causal attention of the newest tokens to all tokens so far, query heads sharing KV heads.",
        "snippets/models/decoder.py",
        ("attend",),
        ("tests/models/test_decoder.py::test_attention_equals_the_formula",),
        (
            "Write the scores as one product, scaled by one over the square root of head_dim.",
            "New token number i sits at position tokens - new + i: it sees that position and all before it.",
            "A KV head serves heads / kv_heads neighbours among the query heads: repeat_interleave, not repeat.",
        ),
    ),
    Drill(
        "online_softmax",
        "Attention in tiles that never holds a whole row of scores, with an optional sliding window.",
        "snippets/throughput/efficient_attention.py",
        ("online",),
        (
            "tests/throughput/test_efficient_attention.py::"
            "test_tiles_equal_naive_equal_the_kernel_equal_a_loop_by_hand",
            "tests/throughput/test_efficient_attention.py::test_a_window_in_tiles_equals_the_mask",
        ),
        (
            "Keep three things a row: the largest score so far, the sum of exponentials, the weighted sum of values.",
            "A new tile may raise the largest score: multiply what you kept by exp(old largest - new largest).",
            "Start a row of tiles where every row sees something (the diagonal), or exp(-inf - -inf) gives NaN.",
        ),
    ),
    Drill(
        "kv_cache_step",
        "Write new keys and values behind those that are there, and return everything so far without a copy.",
        "snippets/models/decoder.py",
        ("KVCache.append",),
        (
            "tests/models/test_decoder.py::test_cache_gives_views_and_grows_nothing",
            "tests/models/test_decoder.py::test_cache_that_is_full_refuses",
            "tests/models/test_decoder.py::test_cached_equals_uncached",
        ),
        (
            "The buffers are (layers, batch, kv_heads, tokens, head_dim): write at one layer, behind `length`.",
            "Do not move `length`: every layer of a step writes at the same place, and the caller moves it once.",
            "A slice is a view. Refuse before writing when there is no room, and say both sizes.",
        ),
    ),
    Drill(
        "gqa",
        "Grouped-query attention of one new token that reads each KV head once.",
        "snippets/kv_cache/heads_mha_gqa_mqa.py",
        ("grouped",),
        ("tests/kv_cache/test_heads_mha_gqa_mqa.py::test_three_ways_equal_each_head_by_hand",),
        (
            "One new token: nothing is masked.",
            "The query heads of a group attend to the same keys: they can be rows of one product.",
            "Reshape queries to (batch, kv_heads, group, head_dim), attend, and reshape back.",
        ),
    ),
    Drill(
        "rope",
        "Rotary positions: the angles of a range of positions, and their application in half-split order.",
        "snippets/models/decoder.py",
        ("rotation", "rotate"),
        (
            "tests/embeddings/test_positions_enter_later.py::"
            "test_the_decoders_rotation_is_the_papers_block_matrix_and_its_complex_form",
            "tests/models/test_decoder.py::test_equals_transformers",
        ),
        (
            "Pair i turns by position / theta ** (2 i / head_dim); compute angles in FP32.",
            "Half-split: feature i is paired with feature i + head_dim / 2, so the angles repeat once.",
            "A pair (a, b) becomes (a cos - b sin, b cos + a sin).",
        ),
    ),
    Drill(
        "top_p",
        "Nucleus sampling's cut: the fewest likeliest tokens whose chances reach p, and nothing else.",
        "snippets/models/sampling.py",
        ("top_p",),
        ("tests/models/test_sampling.py",),
        (
            "Sort the chances from the likeliest down and sum them up.",
            "A token stays if the sum *before* it is still below p: so the one that crosses p stays.",
            "Scatter back to the vocabulary's order, and divide by what is left so that it sums to one.",
        ),
    ),
    Drill(
        "block_allocator",
        "Hand out blocks, share them, take them back; a block without a holder is free again.",
        "snippets/models/paged.py",
        ("BlockAllocator.take", "BlockAllocator.share", "BlockAllocator.release"),
        (
            "tests/models/test_paged.py::test_blocks_are_handed_out_once_and_come_back_with_their_last_holder",
            "tests/models/test_paged.py::test_too_few_blocks_says_how_many_are_missing_and_takes_none",
            "tests/models/test_paged.py::test_a_free_block_is_neither_shared_nor_released",
            "tests/models/test_paged.py::test_forks_part_where_their_tokens_do",
        ),
        (
            "The free list is a stack; holders are a count for each block.",
            "Check before you take: a refused request changes nothing.",
            "On release, count down; at none, push the block back. `_held` refuses a free one.",
        ),
    ),
    Drill(
        "int8_rows",
        "Symmetric INT8 with one scale a row, whose codes answer for the rounding of the scale as well.",
        "snippets/models/quantized.py",
        ("quantize_rows_int8",),
        (
            "tests/models/test_quantized.py::test_int8_rows",
            "tests/models/test_quantized.py::test_zero_rows_stay_zero_and_a_transposed_view_works",
        ),
        (
            "The scale of a row is its largest magnitude over the largest code; no zero point.",
            "Round the scale to `scale_dtype` first, then divide by the rounded one.",
            "A row of zeros has a scale of zero: do not divide by it. Scales are (rows, groups of a row).",
        ),
        hidden=("_symmetric",),
    ),
    Drill(
        "int4_packing",
        "Pack signed four-bit codes into bytes, and unpack them.",
        "snippets/models/quantized.py",
        ("pack_int4", "unpack_int4"),
        (
            "tests/models/test_quantized.py::test_packing_is_invertible",
            "tests/models/test_quantized.py::test_packing_puts_the_even_column_low",
            "tests/models/test_quantized.py::test_int4_groups",
            "tests/models/test_quantized.py::test_what_does_not_fit_is_refused",
        ),
        (
            "Shift the codes to be unsigned first: add eight.",
            "The even column is the low half of a byte; shift the odd one up by four bits.",
            "Mask and shift to unpack, stack the pair in the last dimension, flatten, subtract eight as int8.",
        ),
    ),
    Drill(
        "bpe_merge",
        "Byte-pair encoding of one piece: join the neighbours whose merge was learned first, until none is left.",
        "snippets/embeddings/tokenization_first.py",
        ("merge",),
        (
            "tests/embeddings/test_tokenization_first.py::"
            "test_merging_by_lowest_rank_is_applying_the_list_from_its_start",
            "tests/embeddings/test_tokenization_first.py::test_pieces_and_ids_by_hand_are_the_librarys",
        ),
        (
            "Start from single bytes; `bpe.ids` says which bytes have a token.",
            "Of all neighbouring pairs take the one with the lowest rank, the leftmost of equal ones.",
            "Stop when no pair's rank is below `merges`.",
        ),
    ),
    Drill(
        "speculative_accept",
        "Accept or reject drafted tokens so that the target's distribution is kept exactly.",
        "snippets/throughput/speculative_decoding.py",
        ("verify",),
        (
            "tests/throughput/test_speculative_decoding.py::test_the_rule_keeps_the_target_and_the_shortcuts_do_not",
            "tests/throughput/test_speculative_decoding.py::test_acceptance_is_the_overlap_of_the_distributions",
        ),
        (
            "Keep a token with chance min(1, target / draft); stop at the first that is not kept.",
            "In its place draw from what the draft proposes too seldom: max(0, target - draft), normalised.",
            "All kept: one token more, from the target's last row.",
        ),
    ),
    Drill(
        "prompt_lookup",
        "Propose what followed the newest tokens the last time they occurred in the sequence.",
        "snippets/throughput/speculative_decoding.py",
        ("Lookup.__call__",),
        ("tests/throughput/test_speculative_decoding.py::test_lookup_proposes_what_followed_the_latest_match",),
        (
            "Try the longest match first; the newest tokens themselves are no match.",
            "Search from the end: the latest occurrence wins.",
            "A proposal that is certain has a distribution of a single one: one row a token, vocabulary wide.",
        ),
    ),
)

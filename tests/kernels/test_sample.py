"""Do all providers draw the tokens that the reference defines, and are those what the parameters promise?"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kernels.logits import BLOCK
from kernels.sample import Samples, SamplingBatch, numba, reference, sample
from tests.kernels.compare import assert_same_samples, both_dtypes


def rows(count: int, **changes: torch.Tensor) -> SamplingBatch:
    """``count`` rows that sample at temperature 1 without filters, with seeds of their own."""
    plain = SamplingBatch(
        temperature=torch.ones(count),
        top_k=torch.zeros(count, dtype=torch.int32),
        top_p=torch.ones(count),
        min_p=torch.zeros(count),
        seed=torch.arange(count) * 7919 - 5,
        position=torch.zeros(count, dtype=torch.int64),
        edited=torch.empty(0, dtype=torch.int32),
        edit_starts=torch.zeros(count + 1, dtype=torch.int32),
        edit_scale=torch.empty(0),
        edit_offset=torch.empty(0),
        mask=torch.empty(0, 0, dtype=torch.int32),
        mask_row=torch.full((count,), -1, dtype=torch.int32),
        top=torch.zeros(count, dtype=torch.int32),
        width=0,
    )
    return replace(plain, **changes, width=max(changes.get("top", plain.top).tolist()))


def only(batch: SamplingBatch, row: int) -> SamplingBatch:
    """One row of a batch, with the whole of ``mask``."""
    begin, end = batch.edit_starts[row : row + 2].tolist()
    values = {field.name: getattr(batch, field.name)[row : row + 1] for field in fields(batch) if field.name != "width"}
    for name in ("edited", "edit_scale", "edit_offset"):
        values[name] = getattr(batch, name)[begin:end]
    return SamplingBatch(**{**values, "edit_starts": int32([0, end - begin]), "mask": batch.mask, "width": batch.width})


def int32(values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def masks_of(allowed: torch.Tensor) -> torch.Tensor:
    """The words for truth values [M, V]; the bits past V are set, which must not matter."""
    padding = torch.ones(len(allowed), -allowed.shape[1] % 32, dtype=torch.bool)
    bits = torch.cat((allowed, padding), 1).view(len(allowed), -1, 32)
    return (bits << torch.arange(32)).sum(-1).to(torch.int32)


def assert_same(logits: torch.Tensor, batch: SamplingBatch) -> Samples:
    """The providers agree; what they do."""
    before = logits.clone()
    actual, expected = numba.sample(logits, batch), reference.sample(logits, batch)
    assert torch.equal(logits, before)
    assert_same_samples(actual, expected)
    return actual


@both_dtypes
@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 9),
    vocabulary=st.sampled_from((1, 2, 6, 16, 17, 32, 33, 42, 431, 2000)),
    seed=st.integers(0, 9999),
)
def test_numba_draws_the_reference_tokens(dtype: torch.dtype, count: int, vocabulary: int, seed: int) -> None:
    assert_same(*reference.inputs(count, vocabulary, dtype, seed))


FEATURES: Final = (
    ("edited", "edit_starts", "edit_scale", "edit_offset"),
    ("mask", "mask_row"),
    ("top",),
    ("top_k", "top_p", "min_p"),
    ("temperature",),
)
IDS: Final = ("edits", "mask", "top", "filters", "temperature", "all")


@both_dtypes
@pytest.mark.parametrize("features", [*((feature,) for feature in FEATURES), FEATURES], ids=IDS)
@pytest.mark.parametrize("vocabulary", [6, 42, 431, 32001])
@pytest.mark.parametrize("count", [1, 3, 17])
def test_each_feature_alone_and_all_together(
    dtype: torch.dtype, features: tuple[tuple[str, ...], ...], vocabulary: int, count: int
) -> None:
    logits, batch = reference.inputs(count, vocabulary, dtype, vocabulary)
    changes = {name: getattr(batch, name) for feature in features for name in feature}
    assert_same(logits, rows(count, **changes))


@settings(deadline=None, max_examples=60)
@given(
    levels=st.lists(st.sampled_from((-3.0, 0.0, 1.0, 1.5)), min_size=2, max_size=40),
    allowed=st.integers(1, 2**40 - 1),
    top=st.integers(0, 41),
    top_k=st.integers(0, 41),
    top_p=st.sampled_from((0.0, 0.1, 0.5, 0.75, 0.999, 1.0)),
    min_p=st.sampled_from((0.0, 0.3, 0.5, 1.0)),
)
def test_ties_are_treated_alike(
    levels: list[float], allowed: int, top: int, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.tensor([levels] * 8)
    batch = rows(
        8,
        top_k=torch.full((8,), top_k, dtype=torch.int32),
        top_p=torch.full((8,), top_p),
        min_p=torch.full((8,), min_p),
        mask=masks_of(torch.tensor([[bool(allowed >> i & 1) for i in range(len(levels))]])),
        mask_row=int32([0, -1] * 4),
        top=int32([top, 0] * 4),
    )
    assert_same(logits, batch)


def test_a_block_is_a_chunk() -> None:
    """What the normaliser's pass leaves of blocks is used as the chunks' masses."""
    assert BLOCK == reference.CHUNK


@both_dtypes
def test_a_row_draws_the_same_token_in_any_batch(dtype: torch.dtype) -> None:
    logits, batch = reference.inputs(12, 331, dtype, 77)
    together = sample(logits, batch).tokens.tolist()
    alone = [sample(logits[row : row + 1], only(batch, row)).tokens.item() for row in range(12)]
    assert together == alone


@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("temperature", [1e-40, 1e-3, 1.0, 1e6])
def test_extreme_temperatures_and_logits_overtake_nobody(spread: float, temperature: float) -> None:
    """The race's float32 bound may let losers through to the exact comparison, but must stop no winner."""
    logits = spread * torch.randn(8, 3000, generator=torch.Generator().manual_seed(8))
    assert_same(logits, rows(8, temperature=torch.full((8,), temperature)))


def test_frequencies_are_the_probabilities() -> None:
    count = 40_000
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.0999, 0.0001])
    logits = probabilities.log().repeat(count, 1)
    drawn = torch.bincount(sample(logits, rows(count)).tokens, minlength=5) / count
    # Four standard deviations of the largest share.
    torch.testing.assert_close(drawn, probabilities, rtol=0, atol=4 * (0.25 / count) ** 0.5)


FILTERS: Final[tuple[dict[str, float], ...]] = (
    {},
    {"top_k": 150},
    {"top_p": 0.8},
    {"min_p": 0.02},
    {"top_k": 200, "top_p": 0.9},
)


@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: " ".join(filters) or "none")
def test_frequencies_over_several_chunks_are_the_probabilities(filters: dict[str, float]) -> None:
    """A chi-square test: three chunks of ids and part of one, that weigh differently and have tokens which do."""
    count, vocabulary = 40_000, 3 * reference.CHUNK + 47
    draw = torch.Generator().manual_seed(11)
    logits = 1.5 * torch.randn(vocabulary, generator=draw) + torch.arange(vocabulary) // reference.CHUNK / 3
    plain = rows(count, temperature=torch.full((count,), 1.3))
    changed = {name: torch.full_like(getattr(plain, name), value) for name, value in filters.items()}
    batch = replace(plain, **changed, width=plain.width)
    expected = count * allowed_by(logits / 1.3, **filters)
    drawn = torch.bincount(sample(logits.repeat(count, 1), batch).tokens, minlength=vocabulary)
    assert drawn[expected == 0].sum() == 0
    # Rare tokens are counted as one.
    often = expected >= 5
    pairs = [(drawn[often], expected[often])]
    if (rest := expected[~often].sum()) > 0:
        pairs.append((drawn[~often].sum()[None], rest[None]))
    distance = sum(float(((seen - wanted) ** 2 / wanted).sum()) for seen, wanted in pairs)
    freedom = int(often.sum())
    # Five standard deviations of the chi-square distribution.
    assert distance < freedom + 5 * (2 * freedom) ** 0.5


def allowed_by(z: torch.Tensor, top_k: float = 0, top_p: float = 1, min_p: float = 0) -> torch.Tensor:
    """The probabilities that filters leave, the plain way: by a sort."""
    order = z.double().sort(descending=True)
    left = order.values.softmax(-1)
    if top_k:
        left[int(top_k) :] = 0
    left = torch.where(left.cumsum(-1) - left < top_p * left.sum(), left, 0)
    left = torch.where(left >= min_p * left[0], left, 0)
    return torch.empty_like(left).index_copy_(0, order.indices, left / left.sum())


def test_positions_of_one_seed_are_independent() -> None:
    count = 20_000
    logits = torch.zeros(count, 4)
    batch = rows(count, seed=torch.full((count,), 42), position=torch.arange(count))
    tokens = sample(logits, batch).tokens
    pairs = torch.bincount(tokens[:-1] * 4 + tokens[1:], minlength=16) / (count - 1)
    torch.testing.assert_close(pairs, torch.full((16,), 1 / 16), rtol=0, atol=4 * (1 / 16 / count) ** 0.5)


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(5, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.1), (9, 0.8, 0.05)])
def test_the_filters_keep_what_transformers_keeps(top_k: int, top_p: float, min_p: float) -> None:
    draw = torch.Generator().manual_seed(9)
    logits = 2 * torch.randn(1, 60, generator=draw)
    kept = TemperatureLogitsWarper(0.7)(torch.zeros(1, 1, dtype=torch.int64), logits)
    if top_k:
        kept = TopKLogitsWarper(top_k)(torch.zeros(1, 1, dtype=torch.int64), kept)
    if top_p < 1:
        kept = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.int64), kept)
    if min_p:
        kept = MinPLogitsWarper(min_p)(torch.zeros(1, 1, dtype=torch.int64), kept)
    count = 4000
    batch = rows(
        count,
        temperature=torch.full((count,), 0.7),
        top_k=torch.full((count,), top_k, dtype=torch.int32),
        top_p=torch.full((count,), top_p),
        min_p=torch.full((count,), min_p),
    )
    drawn = set(sample(logits.repeat(count, 1), batch).tokens.tolist())
    assert drawn == set(kept[0].isfinite().nonzero().flatten().tolist())


def test_greedy_takes_the_smallest_of_equal_tokens_and_skips_banned_ones() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]] * 3)
    batch = rows(
        3,
        temperature=torch.zeros(3),
        edited=int32([1, 1, 2]),
        edit_starts=int32([0, 0, 1, 3]),
        edit_scale=torch.ones(3),
        edit_offset=torch.full((3,), float("-inf")),
    )
    drawn = assert_same(logits, batch)
    assert drawn.tokens.tolist() == [1, 2, 3]
    # The bans change what is drawn, not what the model thinks of it.
    expected = logits[0].log_softmax(-1)[[1, 2, 3]]
    torch.testing.assert_close(drawn.logprobs, expected)


@both_dtypes
def test_edits_are_transformers_repetition_penalty_and_then_a_sum(dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(1, 60, generator=torch.Generator().manual_seed(3))).to(dtype)
    seen = torch.randperm(60, generator=torch.Generator().manual_seed(4))[:20]
    offset = torch.linspace(-3, 3, 20)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(seen[None], logits.float())
    expected[0, seen] += offset
    count = 4000
    plain = rows(
        count,
        edited=seen.repeat(count).to(torch.int32),
        edit_starts=torch.arange(count + 1, dtype=torch.int32) * 20,
        edit_scale=torch.full((count * 20,), 1.7),
        edit_offset=offset.repeat(count),
    )
    # The same noise decides between the same logits, whether the kernel or transformers edited them.
    drawn = sample(logits.repeat(count, 1), plain).tokens
    assert drawn.tolist() == sample(expected.repeat(count, 1), rows(count)).tokens.tolist()
    assert len(drawn.unique()) > 5


@both_dtypes
@pytest.mark.parametrize("vocabulary", [6, 32, 42, 431])
def test_what_a_mask_forbids_is_never_drawn_and_all_it_allows_is(dtype: torch.dtype, vocabulary: int) -> None:
    allowed = torch.rand(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) < 0.2
    allowed[vocabulary // 2] = True
    count = 4000
    batch = rows(
        count,
        mask=masks_of(torch.stack((~allowed, allowed))),
        mask_row=torch.ones(count, dtype=torch.int32),
    )
    drawn = sample(torch.zeros(count, vocabulary, dtype=dtype), batch).tokens
    assert set(drawn.tolist()) == set(allowed.nonzero().flatten().tolist())


@both_dtypes
def test_a_mask_of_all_changes_nothing_and_leaves_neighbours_alone(dtype: torch.dtype) -> None:
    logits = torch.randn(8, 431, generator=torch.Generator().manual_seed(1)).to(dtype)
    masks = masks_of(torch.tensor([[True], [False]]).repeat(1, 431))
    drawn = sample(logits, rows(8, mask=masks, mask_row=int32([0, -1, 1, -1, 0, -1, 1, -1]))).tokens.tolist()
    plain = sample(logits, rows(8)).tokens.tolist()
    assert drawn == [token if row not in (2, 6) else -1 for row, token in enumerate(plain)]


@both_dtypes
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_is_left_no_token_is_drawn(dtype: torch.dtype, temperature: float) -> None:
    """By the mask, by bans, and by both: each forbids what the other allows."""
    logits = torch.randn(3, 42, generator=torch.Generator().manual_seed(2)).to(dtype)
    even = torch.arange(42) % 2 == 0
    batch = rows(
        3,
        temperature=torch.full((3,), temperature),
        edited=torch.cat((torch.arange(42), torch.arange(0, 42, 2))).to(torch.int32),
        edit_starts=int32([0, 0, 42, 63]),
        edit_scale=torch.ones(63),
        edit_offset=torch.full((63,), float("-inf")),
        mask=masks_of(torch.stack((torch.zeros(42, dtype=torch.bool), even))),
        mask_row=int32([0, -1, 1]),
        top=int32([2, 2, 2]),
    )
    drawn = assert_same(logits, batch)
    assert drawn.tokens.tolist() == [-1, -1, -1]
    assert drawn.logprobs.tolist() == [float("-inf")] * 3
    assert drawn.top_tokens.tolist() == logits.float().topk(2).indices.tolist()


@pytest.mark.parametrize("changes", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}])
def test_filters_count_only_what_the_mask_left(changes: dict[str, float]) -> None:
    logits = torch.zeros(500, 431)
    logits[:, :3] = torch.tensor([-9.0, -9.5, -30.0])
    plain = rows(500, mask=masks_of(torch.arange(431)[None] < 3), mask_row=torch.zeros(500, dtype=torch.int32))
    changed = {name: torch.full_like(getattr(plain, name), value) for name, value in changes.items()}
    drawn = set(assert_same(logits, replace(plain, **changed, width=plain.width)).tokens.tolist())
    assert drawn == ({0} if "top_p" in changes else {0, 1})


@both_dtypes
def test_the_likeliest_are_the_models_own(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 431, generator=torch.Generator().manual_seed(5)).to(dtype)
    batch = rows(
        3,
        temperature=torch.full((3,), 0.1),
        top_k=int32([1, 1, 1]),
        edited=int32([7]),
        edit_starts=int32([0, 1, 1, 1]),
        edit_scale=torch.tensor([1.0]),
        edit_offset=torch.tensor([100.0]),
        mask=masks_of(torch.arange(431)[None] == 9),
        mask_row=int32([-1, 0, -1]),
        top=int32([4, 2, 0]),
    )
    drawn = assert_same(logits, batch)
    own = logits.double().log_softmax(-1)
    assert drawn.tokens.tolist() == [7, 9, int(own[2].argmax())]
    torch.testing.assert_close(drawn.logprobs, own[[0, 1, 2], drawn.tokens].float(), rtol=1e-5, atol=1e-5)
    order = own.sort(descending=True, stable=True).indices
    assert drawn.top_tokens.tolist() == [order[0, :4].tolist(), [*order[1, :2].tolist(), -1, -1], [-1] * 4]
    torch.testing.assert_close(drawn.top_logprobs[0], own[0, order[0, :4]].float(), rtol=1e-5, atol=1e-5)
    assert drawn.top_logprobs[1, 2:].tolist() == drawn.top_logprobs[2, 2:].tolist() == [float("-inf")] * 2


def test_masks_that_are_too_narrow_are_refused() -> None:
    batch = rows(1, mask=torch.zeros(1, 2, dtype=torch.int32), mask_row=int32([0]))
    with pytest.raises(ValueError, match="masks of 2 words don't cover 65 tokens"):
        sample(torch.zeros(1, 65), batch)


def test_the_entropy_is_that_of_the_model() -> None:
    batch = rows(2, temperature=torch.tensor([0.0, 0.3]))
    flat = sample(torch.zeros(2, 331), batch)
    torch.testing.assert_close(flat.entropies, torch.full((2,), 331.0).log())
    sure = sample(torch.tensor([[0.0, 200.0, 0.0]] * 2), batch)
    assert sure.entropies.tolist() == [0.0, 0.0]
    assert sure.logprobs.tolist() == [0.0, 0.0]


LEADS: Final = (0.0, 0.02, 0.09, 0.11, 0.3)


def led(first: float, lead: float) -> torch.Tensor:
    """Logits by which the likeliest token is so likely, and the next one by its lead less."""
    second = first - lead
    probabilities = torch.full((431,), (1 - first - second) / 429)
    assert 0 < probabilities[0] < second, "the second is to be the second"
    probabilities[300], probabilities[17] = first, second
    return probabilities.log() + 3


@both_dtypes
@pytest.mark.parametrize("provider", [numba.sample, reference.sample], ids=("numba", "reference"))
def test_a_low_margin_is_one_of_less_than_a_tenth(
    provider: Callable[[torch.Tensor, SamplingBatch], Samples], dtype: torch.dtype
) -> None:
    """Whatever its temperature, mask and edits: the margin is the model's own."""
    pairs = [(first, lead) for first in (0.12, 0.25, 0.4, 0.49) for lead in LEADS if lead < first - 0.01]
    logits = torch.stack([led(first, lead) for first, lead in pairs]).to(dtype)
    count = len(pairs)
    batch = rows(
        count,
        temperature=torch.linspace(0, 2, count),
        edited=int32([300] * count),
        edit_starts=torch.arange(count + 1, dtype=torch.int32),
        edit_scale=torch.ones(count),
        edit_offset=torch.full((count,), float("-inf")),
        mask=masks_of(torch.arange(431)[None] % 2 == 0),
        mask_row=int32([0, -1] * (count // 2) + [0] * (count % 2)),
    )
    expected = [int(lead < reference.LOW_MARGIN) for _, lead in pairs]
    assert 0 < sum(expected) < count
    assert provider(logits, batch).low_margins.tolist() == expected


def test_margins_of_few_tokens() -> None:
    """One alone has no rival; two, and three, that are alike; one that is likelier than all others together."""
    nothing = float("-inf")
    rivals = [[0.0, nothing, nothing], [0.0, 0.0, nothing], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.3, 0.0, nothing]]
    assert assert_same(torch.tensor(rivals), rows(5)).low_margins.tolist() == [0, 1, 1, 0, 0]
    assert assert_same(torch.zeros(1, 1), rows(1)).low_margins.tolist() == [0]
    assert assert_same(torch.zeros(1, 20), rows(1)).low_margins.tolist() == [1], "no token has a tenth"


def test_what_numba_cannot_take_goes_to_the_reference() -> None:
    assert sample(torch.zeros(1, 5, dtype=torch.float64), rows(1)).tokens.shape == (1,)


@pytest.mark.parametrize("changes", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"temperature": 0.0}])
def test_broken_logits_stay_inside_the_vocabulary_and_the_mask(changes: dict[str, float]) -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(6))
    logits[0, 7] = float("nan")
    logits[1, 7] = float("inf")
    logits[2, 7] = float("inf")
    logits[3] = float("nan")
    logits[4] = float("-inf")
    masks = masks_of(torch.arange(300)[None] % 7 == 0)
    plain = rows(5, mask=masks, mask_row=int32([0, 0, -1, -1, 0]), top=int32([3] * 5))
    changed = {name: torch.full_like(getattr(plain, name), value) for name, value in changes.items()}
    drawn = numba.sample(logits, replace(plain, **changed, width=plain.width)).tokens.tolist()
    assert drawn[0] in range(0, 300, 7)
    assert drawn[1:] == [7, 7, -1, -1]


@pytest.mark.parametrize("provider", [numba.sample, reference.sample], ids=("numba", "reference"))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ban_holds_even_for_an_infinite_logit(
    provider: Callable[[torch.Tensor, SamplingBatch], Samples], temperature: float
) -> None:
    batch = rows(
        1,
        temperature=torch.tensor([temperature]),
        edited=int32([1]),
        edit_starts=int32([0, 1]),
        edit_scale=torch.ones(1),
        edit_offset=torch.tensor([float("-inf")]),
    )
    assert provider(torch.tensor([[0.0, float("inf"), -200.0]]), batch).tokens.tolist() == [0]

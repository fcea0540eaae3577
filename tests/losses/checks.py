"""What must hold of the CRINGE loss, as functions that take the loss.

`test_cringe.py` runs them on our loss, where each must pass; `test_cringe_mutations.py` runs them on damaged copies,
where a named one must raise AssertionError. Float64 throughout unless a check is about another type, so that
tolerances can be those of rounding and no wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.losses import CringeOutput, TokenLabel

from .reference import reference_candidates, reference_cringe

Loss = Callable[..., CringeOutput]
POSITIVE, NEGATIVE, PLAIN = TokenLabel.POSITIVE, TokenLabel.NEGATIVE, TokenLabel.PLAIN


class Batch(NamedTuple):
    """The four tensors of the loss, in the order of its arguments."""

    logits: Tensor
    targets: Tensor
    labels: Tensor
    mask: Tensor


def make_batch(logits: Any, targets: Any, labels: Any, mask: Any = None) -> Batch:
    """A float64 batch from nested lists; every token counts unless a mask is given."""
    target_ids = torch.tensor(targets, dtype=torch.int64)
    return Batch(
        torch.as_tensor(logits, dtype=torch.float64).clone().requires_grad_(),
        target_ids,
        torch.tensor(labels),
        torch.ones_like(target_ids, dtype=torch.bool) if mask is None else torch.tensor(mask, dtype=torch.bool),
    )


def random_batch(seed: int, examples: int = 4, steps: int = 5, vocabulary_size: int = 7, spread: float = 3.0) -> Batch:
    """Normal logits, every label, about a quarter of the tokens padded; labels per token where the seed is odd."""
    generator = torch.Generator().manual_seed(seed)
    shape = (examples, steps)
    return Batch(
        (spread * torch.randn(*shape, vocabulary_size, generator=generator, dtype=torch.float64)).requires_grad_(),
        torch.randint(vocabulary_size, shape, generator=generator),
        torch.randint(-1, 2, shape if seed % 2 else shape[:1], generator=generator),
        torch.rand(shape, generator=generator) < 0.75,
    )


def assert_same(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Numbers, lists, arrays or tensors agree but for float64 rounding."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def seeded(seed: int = 0) -> torch.Generator:
    """A CPU generator with a seed."""
    return torch.Generator().manual_seed(seed)


def logits_gradient(output: CringeOutput, batch: Batch) -> Tensor:
    """Gradient of the loss with respect to the logits."""
    return torch.autograd.grad(output.loss, batch.logits)[0]


# Numbers.


def check_hand_worked_numbers(loss: Loss) -> None:
    """Five tokens over a vocabulary of four, alpha = 0.5, k = 1; scores are written as weights exp(logit).

    positive  weights 4 2 1 1, target 0: -ln(4 / 8)                                   = ln 2 = 0.693147
    plain     weights 1 1 1 1, target 3: -ln(1 / 4)                                   = ln 4 = 1.386294
    negative  weights 6 3 1 1, target 0; best other is id 1: ln(1 + 6 / 3)            = ln 3 = 1.098612
    negative  weights 1 2 8 4, target 0; best other is id 2: ln(1 + 1 / 8)                   = 0.117783
    padding   weights 9 1 1 1, target 0, of a negative example: not counted

    loss = (0.693147 + 1.386294 + 0.5 * (1.098612 + 0.117783)) / 4 = 2.687639 / 4 = 0.671910

    Gradients of the third token: 0.5 / 4 * 6 / (6 + 3) = 1 / 12 on id 0, -1 / 12 on id 1.
    """
    weights = [[[4.0, 2, 1, 1], [1, 1, 1, 1], [6, 3, 1, 1]], [[1, 2, 8, 4], [9, 1, 1, 1], [1, 1, 1, 1]]]
    batch = make_batch(
        torch.tensor(weights, dtype=torch.float64).log(),
        [[0, 3, 0], [0, 0, 0]],
        [[POSITIVE, PLAIN, NEGATIVE], [NEGATIVE, NEGATIVE, POSITIVE]],
        [[1, 1, 1], [1, 0, 0]],
    )
    output = loss(*batch, alpha=0.5, generator=None)
    assert abs(output.loss.item() - 0.671910) < 1e-6
    assert_same(output.loss.item(), math.log(2 * 4 * math.sqrt(3 * 9 / 8)) / 4)
    assert_same(output.ce_tokens.tolist(), [[math.log(2), math.log(4), 0.0], [0.0, 0.0, 0.0]])
    assert_same(output.contrastive_tokens.tolist(), [[0.0, 0.0, math.log(3)], [math.log(9 / 8), 0.0, 0.0]])
    assert output.positive_mask.tolist() == [[True, True, False], [False, False, False]]
    assert output.negative_mask.tolist() == [[False, False, True], [True, False, False]]
    assert output.sampled_positive.tolist() == [[-1, -1, 1], [2, -1, -1]]
    assert_same(logits_gradient(output, batch)[0, 2].tolist(), [1 / 12, -1 / 12, 0.0, 0.0])


def check_numpy_reference(loss: Loss) -> None:
    """Loss, parts and gradient are those of the loops in numpy, for k = 1 and for k > 1 with the drawn ids."""
    shapes = [(4, 5, 7), (1, 1, 2), (3, 2, 40), (2, 9, 3), (6, 1, 5)]
    for seed, (examples, steps, vocabulary_size) in enumerate(shapes * 2):
        batch = random_batch(seed, examples, steps, vocabulary_size)
        for k in {1, min(3, vocabulary_size - 1), vocabulary_size - 1}:
            output = loss(*batch, k=k, alpha=0.7, generator=seeded(seed))
            arrays = (tensor.detach().numpy() for tensor in batch)
            expected = reference_cringe(*arrays, k=k, alpha=0.7, drawn=output.sampled_positive.numpy())
            assert_same(output.loss.item(), expected.loss)
            assert_same(output.ce_tokens.detach().numpy(), expected.ce_tokens)
            assert_same(output.contrastive_tokens.detach().numpy(), expected.contrastive_tokens)
            assert_same(logits_gradient(output, batch).numpy(), expected.logits_grad)


def check_two_way_cross_entropy(loss: Loss) -> None:
    """A negative token costs what cross-entropy over [s+, s-] with class 0 costs, as Algorithm 1 writes it."""
    for seed in range(4):
        batch = random_batch(seed)
        output = loss(*batch, k=3, generator=seeded())
        drawn = output.sampled_positive[output.negative_mask]
        rows, negative_ids = batch.logits[output.negative_mask], batch.targets[output.negative_mask]
        pairs = rows.gather(-1, torch.stack((drawn, negative_ids), dim=-1))
        expected = torch.nn.functional.cross_entropy(pairs, torch.zeros_like(drawn), reduction="none")
        assert len(expected) > 0
        assert_same(output.contrastive_tokens[output.negative_mask], expected)


# Which token gets what.


def check_labels_choose_the_term(loss: Loss) -> None:
    """Positive and plain tokens have cross-entropy alone, negative ones the contrast alone, uncounted ones nothing."""
    batch = make_batch(torch.zeros(1, 4, 3), [[0, 1, 2, 0]], [[POSITIVE, PLAIN, NEGATIVE, NEGATIVE]], [[1, 1, 1, 0]])
    output = loss(*batch, generator=None)
    assert_same(output.ce_tokens.tolist(), [[math.log(3), math.log(3), 0.0, 0.0]])
    assert_same(output.contrastive_tokens.tolist(), [[0.0, 0.0, math.log(2), 0.0]])


def check_label_for_each_example(loss: Loss) -> None:
    """Labels (B,) are the same as labels (B, T) that repeat along T."""
    batch = random_batch(2)
    output = loss(*batch, generator=None)
    repeated = loss(*batch._replace(labels=batch.labels[:, None].repeat(1, batch.targets.size(1))), generator=None)
    for part, other in zip(output, repeated, strict=True):
        assert torch.equal(part, other)


def check_padding_may_hold_anything(loss: Loss) -> None:
    """Ids outside the vocabulary and unknown labels are no error where the mask is False, and get no gradient."""
    batch = make_batch(
        torch.eye(5)[None, :, :], [[0, 4, 2, -100, 99]], [[PLAIN, NEGATIVE, PLAIN, 7, -9]], [[1, 1, 1, 0, 0]]
    )
    clean = batch._replace(targets=batch.targets.clamp(0, 4), labels=batch.labels.clamp(-1, 1))
    try:
        output = loss(*batch, generator=None)
    except SafetyError as error:
        raise AssertionError("padding was looked at") from error
    assert_same(output.loss, loss(*clean, generator=None).loss)
    assert output.sampled_positive[0, 3:].eq(-1).all()
    assert logits_gradient(output, batch)[0, 3:].eq(0).all()


def check_shared_denominator(loss: Loss) -> None:
    """The loss is the sum of both parts over the number of counted tokens, padded ones and examples left out."""
    batch = random_batch(1)
    output = loss(*batch, alpha=0.3, generator=None)
    assert 0 < output.positive_mask.sum() != output.negative_mask.sum() > 0
    counted = int(batch.mask.sum())
    assert counted < batch.mask.numel()
    assert_same(output.loss, (output.ce_tokens.sum() + 0.3 * output.contrastive_tokens.sum()) / counted)


def check_alpha(loss: Loss) -> None:
    """The contrastive part is proportional to alpha; with alpha = 0 negatives have no gradient."""
    batch = random_batch(3)
    zero, one, three = (loss(*batch, alpha=alpha, generator=None) for alpha in (0.0, 1.0, 3.0))
    assert_same(zero.loss, zero.ce_tokens.sum() / batch.mask.sum())
    assert one.loss.item() > zero.loss.item() + 0.01
    assert_same(three.loss - zero.loss, 3 * (one.loss - zero.loss))
    assert_same(three.contrastive_tokens, one.contrastive_tokens)
    assert logits_gradient(zero, batch)[zero.negative_mask].eq(0).all()


# Which id becomes the positive.


def check_negative_id_is_never_drawn(loss: Loss) -> None:
    """Not even where it has the highest logit by far, for any k."""
    examples, vocabulary_size = 50, 6
    targets = torch.arange(examples)[:, None] % vocabulary_size
    logits = 8.0 * torch.nn.functional.one_hot(targets, vocabulary_size)
    batch = make_batch(logits, targets.tolist(), [NEGATIVE] * examples)
    for k in range(1, vocabulary_size):
        output = loss(*batch, k=k, generator=seeded(k))
        assert output.sampled_positive.ne(targets).all(), f"the negative id was drawn with k={k}"


def check_best_other_id_for_k_of_one(loss: Loss) -> None:
    """With k = 1 the positive is the best of the other ids, and no random number is used."""
    batch = make_batch([[[5.0, 4, 3], [3, 4, 5], [4, 5, 3]]], [[0, 0, 1]], [NEGATIVE])
    generator = seeded()
    before = generator.get_state()
    output = loss(*batch, k=1, generator=generator)
    assert output.sampled_positive.tolist() == [[1, 2, 0]]
    assert torch.equal(generator.get_state(), before)


def check_drawing_frequencies(loss: Loss) -> None:
    """20 000 draws follow softmax over the k best others: chi-square, negative id inside and outside the top k."""
    scores, draws = [1.0, 0.5, 0.0, -0.5, -1.0, 2.0], 20_000
    for negative_id, k in [(5, 3), (4, 3), (1, 2), (0, 5)]:
        batch = make_batch(torch.tensor(scores).repeat(1, draws, 1), [[negative_id] * draws], [NEGATIVE])
        output = loss(*batch, k=k, generator=seeded(17))
        counts = torch.bincount(output.sampled_positive.flatten(), minlength=len(scores)).numpy()
        expected = reference_candidates(np.array(scores), negative_id, k)
        assert set(np.flatnonzero(counts)) == set(expected)
        observed, wanted = counts[list(expected)], draws * np.array(list(expected.values()))
        assert stats.chisquare(observed, wanted).pvalue > 1e-3


def check_randomness_is_the_generators(loss: Loss) -> None:
    """Same seed, same draws; other seed, other draws; torch's global generator is neither read nor moved."""
    batch = random_batch(0, examples=8, steps=8, spread=0.1)
    global_state = torch.random.get_rng_state()
    try:
        first = loss(*batch, k=6, generator=seeded(1)).sampled_positive
        assert torch.equal(torch.random.get_rng_state(), global_state)
        torch.manual_seed(12345)
        assert torch.equal(loss(*batch, k=6, generator=seeded(1)).sampled_positive, first)
        assert not torch.equal(loss(*batch, k=6, generator=seeded(2)).sampled_positive, first)
    finally:
        torch.random.set_rng_state(global_state)


# Gradient.


def check_gradcheck(loss: Loss) -> None:
    """Numerical and analytical gradients agree, of the loss and of both parts, for k = 1 and k = 3."""
    batch = random_batch(5, examples=2, steps=3, vocabulary_size=5)

    def parts(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        output = loss(logits, *batch[1:], k=k, alpha=0.6, generator=seeded())
        return output.loss, output.ce_tokens, output.contrastive_tokens

    for k in (1, 3):
        assert torch.autograd.gradcheck(lambda logits, k=k: parts(logits, k), batch.logits, raise_exception=False)


def check_gradient_on_two_logits(loss: Loss) -> None:
    """+alpha / n * sigmoid(s- - s+) on the negative logit, the opposite on the drawn one, 0 on all others."""
    alpha, steps = 0.4, 6
    batch = make_batch(random_batch(0, 1, steps, 5).logits.detach(), [[0, 1, 2, 3, 4, 0]], [NEGATIVE])
    output = loss(*batch, k=3, alpha=alpha, generator=seeded())
    gradient = logits_gradient(output, batch)[0]
    for t in range(steps):
        negative_id, positive_id = int(batch.targets[0, t]), int(output.sampled_positive[0, t])
        difference = (batch.logits[0, t, negative_id] - batch.logits[0, t, positive_id]).item()
        push = alpha / steps / (1 + math.exp(-difference))
        expected = [0.0] * 5
        expected[negative_id], expected[positive_id] = push, -push
        assert_same(gradient[t].tolist(), expected)


def check_detach_positive(loss: Loss) -> None:
    """The switch takes the gradient from the drawn logit and from nothing else; the loss stays."""
    batch = random_batch(1)
    free, held = (loss(*batch, detach_positive=detach, generator=None) for detach in (False, True))
    assert_same(held.loss, free.loss)
    expected = logits_gradient(free, batch)
    drawn = free.sampled_positive[free.negative_mask]
    rows = expected[free.negative_mask]
    assert rows.gather(-1, drawn[:, None]).lt(0).all()
    expected[free.negative_mask] = rows.scatter(-1, drawn[:, None], 0.0)
    assert_same(logits_gradient(held, batch), expected)


def check_step_direction(loss: Loss) -> None:
    """One step of gradient descent on the logits: targets to follow gain probability, targets to avoid lose it."""
    for k, detach_positive in [(1, False), (3, False), (1, True)]:
        batch = random_batch(7)
        output = loss(*batch, k=k, detach_positive=detach_positive, generator=seeded())
        stepped = batch.logits - 0.5 * logits_gradient(output, batch)
        before, after = (
            logits.log_softmax(-1).gather(-1, batch.targets[..., None]).squeeze(-1)
            for logits in (batch.logits, stepped)
        )
        follow, avoid = batch.mask & batch.labels.ne(NEGATIVE), batch.mask & batch.labels.eq(NEGATIVE)
        assert after[follow].gt(before[follow]).all()
        assert after[avoid].lt(before[avoid]).all()
        if not detach_positive:
            drawn = output.sampled_positive[avoid][:, None]
            assert stepped[avoid].gather(-1, drawn).gt(batch.logits[avoid].gather(-1, drawn)).all()


# Edges.


def check_one_sided_and_empty_batches(loss: Loss) -> None:
    """No positives, no negatives, nothing counted, no examples, no tokens: finite, and a gradient all the same."""
    whole = random_batch(0)
    for label in (POSITIVE, NEGATIVE, PLAIN):
        batch = whole._replace(labels=torch.full((4,), label))
        output = loss(*batch, k=2, generator=seeded())
        assert output.loss.item() > 0
        assert output.negative_mask.any().item() is (label == NEGATIVE)
        assert logits_gradient(output, batch)[batch.mask].abs().sum(-1).gt(0).all()
    nothing = whole._replace(mask=torch.zeros_like(whole.mask))
    for batch in (nothing, random_batch(0, examples=0), random_batch(0, steps=0), random_batch(1, examples=0)):
        for k in (1, 2):
            output = loss(*batch, k=k, generator=seeded())
            assert output.loss.item() == 0.0
            assert logits_gradient(output, batch).eq(0).all()
            assert output.sampled_positive.shape == batch.targets.shape


def check_extreme_logits(loss: Loss) -> None:
    """Differences of 2e4 neither overflow nor vanish: the cost is linear on one side and 0 on the other.

    At a difference of 21 the cost is 21 + 7.6e-10, which float64 can tell from 21.
    """
    batch = make_batch([[[1e4, -1e4, -1e4], [-1e4, 1e4, 0.0], [21.0, 0.0, -5.0]]], [[0, 0, 0]], [NEGATIVE])
    output = loss(*batch, generator=None)
    assert_same(output.contrastive_tokens.tolist(), [[2e4, 0.0, 21 + math.log1p(math.exp(-21))]])
    expected = [[1 / 3, -1 / 3, 0.0], [0.0, 0.0, 0.0]]
    assert_same(logits_gradient(output, batch)[0, :2].tolist(), expected)


def check_half_precision(loss: Loss) -> None:
    """Half precision gives exactly the fp32 loss of the rounded logits, even where differences pass 65 504.

    Against unrounded logits the error is bounded: both terms change by at most 2 * d when no logit moves by more than
    d, and d is the largest logit times the unit roundoff (2^-11 for fp16, 2^-8 for bf16, as torch.finfo.eps / 2).
    """
    for dtype in (torch.float16, torch.bfloat16):
        for spread in (3.0, 4e4):
            batch = random_batch(0, spread=spread)
            batch = batch._replace(logits=batch.logits.detach().clamp(-6e4, 6e4))
            half = batch._replace(logits=batch.logits.to(dtype).requires_grad_())
            output = loss(*half, generator=None)
            assert output.loss.dtype == output.ce_tokens.dtype == output.contrastive_tokens.dtype == torch.float32
            assert all(part.isfinite().all() for part in output)
            gradient = logits_gradient(output, half)
            assert gradient.dtype == dtype
            assert gradient.isfinite().all()
            single = loss(*half._replace(logits=half.logits.detach().float()), generator=None)
            assert torch.equal(output.loss, single.loss)
            rounding = batch.logits.abs().max().item() * torch.finfo(dtype).eps / 2
            difference = output.loss.item() - loss(*batch, generator=None).loss.item()
            assert abs(difference) <= 2 * rounding * (1 + 1e-3)


# Invariances, by Hypothesis.


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Any batch, ties and uncounted batches included."""
    examples, steps, vocabulary_size = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    shape = (examples, steps)
    label_shape = draw(st.sampled_from((shape, shape[:1])))
    arrays = (
        draw(hnp.arrays(np.float64, (*shape, vocabulary_size), elements=st.floats(-30, 30, width=32))),
        draw(hnp.arrays(np.int64, shape, elements=st.integers(0, vocabulary_size - 1))),
        draw(hnp.arrays(np.int64, label_shape, elements=st.sampled_from([int(label) for label in TokenLabel]))),
        draw(hnp.arrays(np.bool_, shape)),
    )
    return Batch(*map(torch.from_numpy, arrays))


def for_any_batch(*more: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Run the decorated property at once on drawn batches.

    Derandomised, so that a mutant dies the same way every day; not shrunk, as the batches are small and mutants many.
    """

    def run(holds: Callable[..., None]) -> None:
        quick = settings(max_examples=50, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
        quick(given(batches(), *more)(holds))()

    return run


def check_padding_changes_nothing(loss: Loss) -> None:
    """Two more steps of padding: same loss, same parts, same draws."""

    @for_any_batch()
    def holds(batch: Batch) -> None:
        k = batch.logits.size(-1) - 1
        longer = Batch(*(torch.cat((part, part[:, :1], part[:, :1]), 1) if part.dim() > 1 else part for part in batch))
        longer.mask[:, -2:] = False
        output = loss(*batch, k=k, generator=seeded())
        longer_output = loss(*longer, k=k, generator=seeded())
        assert_same(longer_output.loss, output.loss)
        for part, longer_part in zip(output[1:], longer_output[1:], strict=True):
            assert_same(longer_part[:, :-2], part)


def check_batch_order(loss: Loss) -> None:
    """The examples in another order: same loss, parts in that order."""

    @for_any_batch(st.randoms(use_true_random=False))
    def holds(batch: Batch, random: Random) -> None:
        order = random.sample(range(len(batch.targets)), len(batch.targets))
        output = loss(*batch, generator=None)
        shuffled_output = loss(*(part[order] for part in batch), generator=None)
        assert_same(shuffled_output.loss, output.loss)
        assert_same(shuffled_output.ce_tokens, output.ce_tokens[order])
        assert_same(shuffled_output.contrastive_tokens, output.contrastive_tokens[order])


def check_logit_shift(loss: Loss) -> None:
    """A constant of its own added to each position's logits: same loss, but for rounding."""

    @for_any_batch(st.floats(-100, 100, width=32))
    def holds(batch: Batch, shift: float) -> None:
        shifts = shift * torch.arange(batch.targets.numel()).view_as(batch.targets)[..., None]
        output = loss(*batch, generator=None)
        shifted_output = loss(batch.logits + shifts, *batch[1:], generator=None)
        assert_same(shifted_output.loss, output.loss, tolerance=1e-11)


def check_batch_split(loss: Loss) -> None:
    """Two halves of a batch, weighted by their counted tokens, make the whole."""

    @for_any_batch(st.integers(0, 4))
    def holds(batch: Batch, cut: int) -> None:
        halves = [Batch(*(part[half] for part in batch)) for half in (slice(cut), slice(cut, None))]
        total = sum(loss(*half, generator=None).loss * half.mask.sum() for half in halves)
        assert_same(total, loss(*batch, generator=None).loss * batch.mask.sum())


CHECKS: dict[str, Callable[[Loss], None]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}

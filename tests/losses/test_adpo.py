"""DPO and adversarial DPO: numbers, limits, gradients, invariances; and damaged copies that these checks catch."""

from __future__ import annotations

import doctest
import inspect
import itertools
import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import parlai_safety.losses.adpo as adpo_module
import parlai_safety.losses.dpo as dpo_module
from parlai_safety.errors import SafetyError
from parlai_safety.losses import adpo_loss, dpo_loss

from .checks import assert_same

quick = settings(max_examples=25, deadline=None, database=None, derandomize=True)
seeds = st.integers(0, 10_000)

NAMES = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "policy_toxic_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
    "reference_toxic_logps",
    "toxic_chosen_logps",
    "toxic_toxic_logps",
)
FORMS = [
    {"anchor": anchor, "paired": paired, "joint": joint}
    for anchor, paired, joint in itertools.product(("toxic", "reference"), (False, True), (False, True))
]


def triples(seed: int, contexts: int = 5, spread: float = 20.0) -> dict[str, Tensor]:
    """Float64 log-probabilities of three replies under three models, their token counts, and who has a toxic reply."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: -spread * torch.rand(contexts, generator=generator, dtype=torch.float64).requires_grad_()
        for name in NAMES
    }
    found = {name: values.detach().requires_grad_(name.startswith("policy")) for name, values in found.items()}
    for reply in ("chosen", "rejected", "toxic"):
        found[f"{reply}_tokens"] = torch.randint(1, 9, (contexts,), generator=generator)
    found["has_toxic"] = torch.rand(contexts, generator=generator) < 0.7
    return found


def pairs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What DPO takes of a batch of triples."""
    return {name: values for name, values in batch.items() if "toxic" not in name}


def gradients(output: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the loss with respect to what the policy says."""
    names = [name for name in batch if name.startswith("policy")]
    found = torch.autograd.grad(output.loss, [batch[n] for n in names], allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def log_sigmoid(x: float) -> float:
    return float(-np.logaddexp(0.0, -x))


def reference(batch: dict[str, Tensor], **settings: Any) -> float:
    """The loss a second time, in plain loops and from the formulas: A, kappa, lambda as in the digest's family."""
    given = {
        "beta": 0.1,
        "gamma": 0.1,
        "toxic_weight": 1.0,
        "anchor": "toxic",
        "paired": False,
        "joint": False,
        "preference": "sigmoid",
        "label_smoothing": 0.0,
        "per_token": False,
        "nll_weight": 0.0,
        **settings,
    }
    rows = {name: values.detach().numpy() for name, values in batch.items()}
    total = 0.0
    for i in range(len(rows["policy_chosen_logps"])):

        def ratio(reply: str, model: str, i: int = i) -> float:
            difference = rows[f"policy_{reply}_logps"][i] - rows[f"{model}_{reply}_logps"][i]
            return float(difference / (rows[f"{reply}_tokens"][i] if given["per_token"] else 1))

        z = ratio("chosen", "reference") - ratio("rejected", "reference")
        pull = None
        if given["toxic_weight"] > 0 and rows["has_toxic"][i]:
            pull = -ratio("toxic", given["anchor"])
            if given["paired"]:
                pull += ratio("chosen", given["anchor"])
        eps, beta = given["label_smoothing"], given["beta"]
        if given["joint"]:
            more = given["toxic_weight"] * given["gamma"] * (pull or 0.0)
            cost = -(1 - eps) * log_sigmoid(beta * z + more) - eps * log_sigmoid(-beta * z + more)
        else:
            if given["preference"] == "ipo":
                cost = (z - 1 / (2 * beta)) ** 2
            else:
                cost = -(1 - eps) * log_sigmoid(beta * z) - eps * log_sigmoid(-beta * z)
            if pull is not None:
                cost -= given["toxic_weight"] * log_sigmoid(given["gamma"] * pull)
        cost -= given["nll_weight"] * rows["policy_chosen_logps"][i] / rows["chosen_tokens"][i]
        total += cost
    return total / len(rows["policy_chosen_logps"])


def check_hand_worked_numbers(adpo: Any, dpo: Any) -> None:
    """One context with beta = gamma = 0.5; log p of c, r, t.

    policy -2 -4 -5; reference -3 -3.5 -4.5; toxic model -6 (c), -3 (t).
    D_ref: c 1, r -0.5, t -0.5; z = 1.5.  D_tox: c 4, t -2.
    The pair costs ln(1 + e^-0.75) = 0.386871. Toxic terms ln(1 + e^(-0.5 m)):
    tox unpaired m = 2 -> 0.313262; tox paired m = 6 -> 0.048587; ref unpaired m = 0.5 -> 0.575939;
    ref paired m = 1.5 -> 0.386871. Joint: ln(1 + e^-(0.75 + 0.5 * 2)) = 0.160224.
    IPO: (1.5 - 1)^2 = 0.25. Smoothing 0.1: 0.386871 + 0.1 * 0.75 = 0.461871.
    """
    numbers = (-2.0, -4.0, -5.0, -3.0, -3.5, -4.5, -6.0, -3.0)
    batch = {name: torch.tensor([x], dtype=torch.float64) for name, x in zip(NAMES, numbers, strict=True)}
    pair = 0.386871
    for form, expected in (
        ({}, pair + 0.313262),
        ({"paired": True}, pair + 0.048587),
        ({"anchor": "reference"}, pair + 0.575939),
        ({"anchor": "reference", "paired": True}, 2 * pair),
        ({"joint": True}, 0.160224),
        ({"toxic_weight": 3.0}, pair + 3 * 0.313262),
        ({"preference": "ipo"}, 0.25 + 0.313262),
        ({"label_smoothing": 0.1}, pair + 0.075 + 0.313262),
        ({"nll_weight": 2.0, "chosen_tokens": torch.tensor([4])}, pair + 0.313262 + 1.0),
    ):
        output = adpo(**batch, beta=0.5, gamma=0.5, **form)
        assert abs(output.loss.item() - expected) < 2e-6, form
    assert_same(output.chosen_rewards.tolist(), [0.5])
    assert_same(output.rejected_rewards.tolist(), [-0.25])
    assert_same(output.toxic_rewards.tolist(), [-1.0])
    assert_same(adpo(**batch, beta=0.5, gamma=0.25).toxic_rewards.tolist(), [-0.5])
    found = dpo(**pairs(batch), beta=0.5)
    assert abs(found.loss.item() - pair) < 1e-6
    assert_same(found.chosen_rewards.tolist(), [0.5])
    assert_same(found.rejected_rewards.tolist(), [-0.25])


def check_numpy_reference(adpo: Any, dpo: Any) -> None:
    """Every form, with every option, is that of the loops; contexts without a toxic reply included."""
    options = (
        {},
        {"beta": 0.3, "gamma": 0.7, "toxic_weight": 0.4},
        {"label_smoothing": 0.2},
        {"per_token": True, "beta": 2.0, "gamma": 3.0},
        {"nll_weight": 0.3},
        {"preference": "ipo", "beta": 0.4},
        {"preference": "ipo", "per_token": True, "nll_weight": 0.5, "beta": 1.5},
    )
    for seed, (form, more) in enumerate(itertools.product(FORMS, options)):
        if form["joint"] and more.get("preference") == "ipo":
            continue
        batch = triples(seed)
        assert_same(adpo(**batch, **form, **more).loss.item(), reference(batch, **form, **more))
        pair = {name: value for name, value in more.items() if name not in ("gamma", "toxic_weight")}
        assert_same(dpo(**pairs(batch), **pair).loss.item(), reference(batch, **pair, toxic_weight=0.0))


def check_dpo_is_lambda_zero(adpo: Any, dpo: Any) -> None:
    """With toxic_weight = 0 every form is DPO to the last bit, gradient included, and needs no toxic number."""
    for seed, form in enumerate(FORMS):
        batch = triples(seed)
        more = {"beta": 0.4, "label_smoothing": 0.1, "nll_weight": 0.2}
        plain = {name: value for name, value in batch.items() if "toxic" not in name}
        found = adpo(**batch, **form, **more, toxic_weight=0.0)
        expected = dpo(**plain, **more)
        assert found.toxic_rewards is None
        assert torch.equal(found.losses, expected.losses)
        assert torch.equal(found.chosen_rewards, expected.chosen_rewards)
        ours, theirs = gradients(found, batch), gradients(expected, plain)
        assert ours.pop("policy_toxic_logps").eq(0).all()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        bare = adpo(**{"policy_toxic_logps": None, **plain}, **form, **more, toxic_weight=0.0)
        assert torch.equal(bare.losses, expected.losses)


def check_directions(adpo: Any, dpo: Any) -> None:
    """In every form descent raises log p of the chosen reply and lowers that of the rejected and of the toxic one."""
    for seed, form in enumerate(FORMS):
        for more in ({}, {"label_smoothing": 0.3}, {"per_token": True}, {"nll_weight": 1.0}):
            batch = triples(seed, spread=1.0)
            found = gradients(adpo(**batch, **form, **more), batch)
            assert found["policy_chosen_logps"].lt(0).all(), (form, more)
            assert found["policy_rejected_logps"].gt(0).all(), (form, more)
            assert torch.equal(found["policy_toxic_logps"].gt(0), batch["has_toxic"]), (form, more)
            assert found["policy_toxic_logps"].ge(0).all()
    batch = pairs(triples(0, spread=1.0))
    for more in ({}, {"preference": "ipo"}, {"label_smoothing": 0.3}):
        found = gradients(dpo(**batch, **more), batch)
        assert found["policy_chosen_logps"].lt(0).all() and found["policy_rejected_logps"].gt(0).all()


def check_toxic_reply_falls_under_ipo(adpo: Any, dpo: Any) -> None:
    """With preference="ipo" the toxic reply is pushed down however far beyond the gap it is."""
    batch = triples(3)
    batch["toxic_toxic_logps"] = batch["policy_toxic_logps"].detach() + 40
    found = gradients(adpo(**batch, preference="ipo"), batch)["policy_toxic_logps"]
    assert torch.equal(found.gt(0), batch["has_toxic"])


def check_gap_table(adpo: Any, dpo: Any) -> None:
    """The digest's table at the start of training: beta = gamma = 0.1, the gap g mirrored for the chosen reply.

    dL / d log p(t): U-tox .1 s(-.1 g); P-tox .1 s(-.2 g); U-ref and P-ref .05; J-tox .1 s(-.1 g), and in J-tox the
    pair's gradient shrinks just so, from the .05 that DPO has.
    """
    tables = {
        (("anchor", "toxic"), ("paired", False)): (0.050, 0.027, 0.012, 0.002),
        (("anchor", "toxic"), ("paired", True)): (0.050, 0.012, 0.002, 0.000),
        (("anchor", "reference"), ("paired", False)): (0.050, 0.050, 0.050, 0.050),
        (("anchor", "reference"), ("paired", True)): (0.050, 0.050, 0.050, 0.050),
        (("anchor", "toxic"), ("joint", True)): (0.050, 0.027, 0.012, 0.002),
    }
    for form, expected in tables.items():
        for gap, pull in zip((0.0, 10.0, 20.0, 40.0), expected, strict=True):
            start = {name: torch.full((1,), -50.0, dtype=torch.float64) for name in NAMES}
            start["toxic_toxic_logps"] += gap
            start["toxic_chosen_logps"] -= gap
            for name in ("policy_chosen_logps", "policy_rejected_logps", "policy_toxic_logps"):
                start[name].requires_grad_()
            found = gradients(adpo(**start, **dict(form)), start)
            assert abs(found["policy_toxic_logps"].item() - pull) < 6e-4, (form, gap)
            of_pair = pull if ("joint", True) in form else 0.05
            assert abs(found["policy_rejected_logps"].item() - of_pair) < 6e-4, (form, gap)


def check_start_of_training(adpo: Any, dpo: Any) -> None:
    """Where the policy is the reference DPO costs ln 2, and IPO 1 / (4 beta^2)."""
    batch = pairs(triples(1))
    for reply in ("chosen", "rejected"):
        batch[f"reference_{reply}_logps"] = batch[f"policy_{reply}_logps"].detach()
    assert_same(dpo(**batch).loss.item(), math.log(2))
    assert_same(dpo(**batch, preference="ipo", beta=0.5).loss.item(), 1.0)


def check_no_toxic_reply(adpo: Any, dpo: Any) -> None:
    """A context without one costs what DPO costs, whatever stands there, and gets no gradient from it."""
    batch = triples(2)
    batch["has_toxic"] = torch.tensor([True, False, False, True, False])
    for name in ("policy_toxic_logps", "reference_toxic_logps", "toxic_toxic_logps", "toxic_chosen_logps"):
        values = batch[name].detach().clone()
        values[~batch["has_toxic"]] = torch.nan if name == "toxic_toxic_logps" else 1e4
        batch[name] = values.requires_grad_(name.startswith("policy"))
    batch["toxic_tokens"] = batch["toxic_tokens"] * batch["has_toxic"]
    expected = dpo(**pairs(batch), beta=2.0, per_token=True).losses
    for form in FORMS:
        output = adpo(**batch, **form, beta=2.0, per_token=True)
        without = ~batch["has_toxic"]
        assert_same(output.losses[without].tolist(), expected[without].tolist())
        assert output.losses[~without].ne(expected[~without]).all()
        assert output.toxic_rewards[without].eq(0).all()
        found = gradients(output, batch)
        assert all(values.isfinite().all() for values in found.values())
        assert found["policy_toxic_logps"][without].eq(0).all()


def check_empty_and_half(adpo: Any, dpo: Any) -> None:
    """No contexts: 0 and a zero gradient. Half precision gives the fp32 loss of the rounded numbers."""
    nothing = {name: torch.zeros(0, requires_grad=name.startswith("policy")) for name in NAMES}
    output = adpo(**nothing)
    output.loss.backward()
    assert output.loss.item() == 0.0
    batch = {name: values.detach().bfloat16() for name, values in triples(0).items() if name in NAMES}
    single = {name: values.float() for name, values in batch.items()}
    assert adpo(**batch).loss.dtype == torch.float32
    assert torch.equal(adpo(**batch).loss, adpo(**single).loss)
    assert torch.equal(dpo(**pairs(batch)).loss, dpo(**pairs(single)).loss)


def check_batches_add_up(adpo: Any, dpo: Any) -> None:
    """Order and split of a batch change nothing; a constant added to policy and reference cancels."""

    @quick
    @given(seeds, st.integers(0, 5), st.permutations(range(5)), st.sampled_from(FORMS), st.floats(-30, 30))
    def holds(seed: int, cut: int, order: list[int], form: dict[str, Any], shift: float) -> None:
        batch = triples(seed)
        whole = adpo(**batch, **form)
        halves = [{name: values[part] for name, values in batch.items()} for part in (slice(cut), slice(cut, None))]
        assert_same(sum(adpo(**half, **form).loss * len(half["has_toxic"]) for half in halves), 5 * whole.loss)
        shuffled = adpo(**{name: values[list(order)] for name, values in batch.items()}, **form)
        assert_same(shuffled.losses.tolist(), whole.losses[list(order)].tolist())
        shifted = {name: values + shift if name in NAMES else values for name, values in batch.items()}
        assert_same(adpo(**shifted, **form).losses.tolist(), whole.losses.tolist(), tolerance=1e-10)

    holds()


def check_gradcheck(adpo: Any, dpo: Any) -> None:
    """Numerical and analytical gradients agree."""
    for seed, form in enumerate(FORMS):
        batch = triples(seed, contexts=2, spread=3.0)
        policy = {name: values for name, values in batch.items() if name.startswith("policy")}

        def value(*given: Tensor, batch: Any = batch, policy: Any = policy, form: Any = form) -> Tensor:
            return adpo(**{**batch, **dict(zip(policy, given, strict=True))}, **form, label_smoothing=0.1).losses

        assert torch.autograd.gradcheck(value, tuple(policy.values()), raise_exception=False)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("name", CHECKS)
def test_property(name: str) -> None:
    CHECKS[name](adpo_loss, dpo_loss)


def test_doctests() -> None:
    for module, examples in ((adpo_module, 3), (dpo_module, 3)):
        results = doctest.testmod(module)
        assert results.attempted >= examples and results.failed == 0


BAD_SETTINGS = [
    ({"beta": 0.0}, "beta is 0.0"),
    ({"beta": math.nan}, "beta is nan"),
    ({"gamma": 0.0}, "gamma is 0"),
    ({"gamma": -1.0}, "gamma is -1.0"),
    ({"toxic_weight": -0.5}, "toxic_weight is -0.5"),
    ({"nll_weight": math.inf}, "nll_weight is inf"),
    ({"anchor": "toxin"}, "'toxic'"),
    ({"preference": "hinge"}, "sigmoid and ipo"),
    ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
    ({"label_smoothing": 0.1, "preference": "ipo"}, "0 with ipo"),
    ({"joint": True, "preference": "ipo"}, "joint"),
    ({"per_token": True, "chosen_tokens": None}, "chosen_tokens is missing"),
    ({"per_token": True, "toxic_tokens": None}, "toxic_tokens is missing"),
    ({"nll_weight": 1.0, "chosen_tokens": None}, "chosen_tokens is missing"),
    ({"toxic_toxic_logps": None}, "toxic_toxic_logps is missing"),
    ({"paired": True, "toxic_chosen_logps": None}, "toxic_chosen_logps is missing"),
    ({"anchor": "reference", "reference_toxic_logps": None}, "reference_toxic_logps is missing"),
    ({"policy_toxic_logps": None}, "policy_toxic_logps is missing"),
    ({"policy_rejected_logps": torch.zeros(4)}, "policy_rejected_logps has shape (4,)"),
    ({"toxic_toxic_logps": torch.zeros(5, 1)}, "toxic_toxic_logps has shape (5, 1)"),
    ({"has_toxic": torch.ones(2, dtype=torch.bool)}, "has_toxic has shape (2,)"),
]


@pytest.mark.parametrize(("wrong", "said"), BAD_SETTINGS)
def test_bad_input_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SafetyError, match=said.replace("(", r"\(").replace(")", r"\)")):
        adpo_loss(**{**triples(0), **wrong})


def test_what_the_settings_do_not_use_may_be_missing() -> None:
    batch = triples(0)
    for name in ("reference_toxic_logps", "toxic_chosen_logps", "chosen_tokens", "rejected_tokens", "toxic_tokens"):
        del batch[name]
    assert adpo_loss(**batch).loss.isfinite()


MUTATIONS = [
    ("dpo", "chosen - rejected, beta", "rejected - chosen, beta"),
    ("dpo", "1 / (2 * beta)", "1 / beta"),
    ("dpo", "(1 - label_smoothing) * kept - label_smoothing", "(1 - label_smoothing) * kept + label_smoothing"),
    ("dpo", "return ratios if tokens is None else ratios / tokens", "return ratios"),
    ("dpo", "return -nll_weight *", "return nll_weight *"),
    ("dpo", "beta * rejected.detach())", "-beta * rejected.detach())"),
    ("adpo", "margins, toxic = chosen - rejected, None", "margins, toxic = rejected - chosen, None"),
    ("adpo", "pulls = -toxic", "pulls = toxic"),
    ("adpo", "pulls = pulls + log_ratios", "pulls = pulls - log_ratios"),
    ("adpo", "penalties = -F.logsigmoid(gamma * pulls)", "penalties = -F.logsigmoid(pulls)"),
    ("adpo", "penalties = penalties.where(has_toxic, 0.0)", "pass"),
    ("adpo", "losses = losses + toxic_weight * penalties", "losses = losses + penalties"),
    ("adpo", "F.logsigmoid(-beta * margins + pull)", "F.logsigmoid(-beta * margins - pull)"),
    ("adpo", "pull = toxic_weight * gamma * pulls", "pull = gamma * pulls"),
    ("adpo", 'reference_toxic_logps if anchor == "reference"', 'toxic_toxic_logps if anchor == "reference"'),
    ("adpo", "toxic_rewards=None if toxic is None else gamma", "toxic_rewards=None if toxic is None else beta"),
]


def damaged(module: ModuleType, old: str, new: str, **names: Any) -> ModuleType:
    source = inspect.getsource(module)
    assert source.count(old) >= 1, old
    copy = ModuleType(module.__name__)
    copy.__dict__.update(names)
    exec(compile(source.replace(old, new), f"<{old}>", "exec"), copy.__dict__)
    return copy


@pytest.mark.parametrize(("where", "old", "new"), MUTATIONS)
def test_damaged_copies_are_caught(where: str, old: str, new: str) -> None:
    """A copy of one module with one line changed fails at least one of the checks."""
    if where == "dpo":
        copy = damaged(dpo_module, old, new)
        adpo = damaged(adpo_module, "", "").adpo_loss  # the loss above it, on the damaged one below
        adpo.__globals__.update({name: getattr(copy, name) for name in vars(copy) if name in adpo.__globals__})
        losses = adpo, copy.dpo_loss
    else:
        losses = damaged(adpo_module, old, new).adpo_loss, dpo_loss

    def caught(check: Any) -> bool:
        try:
            check(*losses)
        except Exception:
            return True
        return False

    assert any(caught(check) for check in CHECKS.values())

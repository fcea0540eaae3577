"""What the criterions for fairseq compute, with a stand-in for its model, dictionary and batches."""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.integrations.fairseq_user import batches
from parlai_safety.integrations.fairseq_user.batches import (
    Step,
    cringe_step,
    labelled_batch,
    pairs_batch,
    pairwise_cringe_step,
    symbol_id,
    unlikelihood_step,
)
from parlai_safety.losses import TokenLabel, cringe_loss, pairwise_cringe_loss, unlikelihood_loss

SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "<pos>", "<neg>", "<none>", "<rejected>", *"abcdef"]
PAD, END = 1, 2


class Words:
    """As fairseq's dictionary."""

    def __init__(self, symbols: list[str]) -> None:
        self.symbols = symbols

    def __contains__(self, sym: str) -> bool:
        return sym in self.symbols

    def index(self, sym: str) -> int:
        return self.symbols.index(sym) if sym in self.symbols else self.unk()

    def pad(self) -> int:
        return PAD

    def eos(self) -> int:
        return END

    def unk(self) -> int:
        return 3


class Model(torch.nn.Module):
    """Scores from the last word and the sum of the source: enough to notice a wrong shift or a wrong row."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = torch.nn.Parameter(torch.randn(len(SYMBOLS), len(SYMBOLS), generator=generator).double())
        self.seen: list[Tensor] = []

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor | None = None
    ) -> tuple[Tensor, None]:
        last = src_tokens if prev_output_tokens is None else prev_output_tokens
        self.seen.append(last)
        source = torch.where(src_tokens == PAD, 0, src_tokens).sum(-1)[:, None, None]
        assert len(source) == len(last) == len(src_lengths)
        return self.table[last] + 0.1 * source * self.table[last].sin(), None


WORDS = Words(SYMBOLS)
LABEL_IDS = {symbol_id(WORDS, word): label for word, label in batches.LABELS.items()}


def ids(text: str, length: int, *, left: bool = False, start: bool = False) -> list[int]:
    row = [WORDS.index(word) for word in text.split()]
    row = [END, *row] if start else [*row, END]
    filler = [PAD] * (length - len(row))
    return [*filler, *row] if left else [*row, *filler]


def sample_of(sources: list[str] | None, targets: list[str]) -> dict[str, Any]:
    """A batch as fairseq's LanguagePairDataset or MonolingualDataset makes it."""
    length = max(len(text.split()) for text in targets) + 1
    previous = torch.tensor([ids(text, length, start=True) for text in targets])
    net_input = {"src_tokens": previous, "src_lengths": (previous != PAD).sum(-1)}
    if sources is not None:
        longest = max(len(text.split()) for text in sources) + 1
        tokens = torch.tensor([ids(text, longest, left=True) for text in sources])
        net_input = {"src_tokens": tokens, "src_lengths": (tokens != PAD).sum(-1), "prev_output_tokens": previous}
    return {"net_input": net_input, "target": torch.tensor([ids(text, length) for text in targets])}


def plain_logits(model: Model, sample: dict[str, Any]) -> Tensor:
    return model(**sample["net_input"])[0]


SOURCES, REPLIES = ["a b c", "d", "e f"], ["a b", "c", "d e f"]
MARKS, LABELS = ["<pos>", "<neg>", "<none>"], torch.tensor([TokenLabel.POSITIVE, TokenLabel.NEGATIVE, TokenLabel.PLAIN])


@pytest.mark.parametrize("sources", (SOURCES, None), ids=("translation", "language_modeling"))
def test_the_label_words_leave_no_trace(sources):
    """The batch is that of the same lines without labels, word for word."""
    marked = sample_of(sources, [f"{mark} {reply}" for mark, reply in zip(MARKS, REPLIES, strict=True)])
    batch, plain = labelled_batch(marked, WORDS, LABEL_IDS), sample_of(sources, REPLIES)
    assert torch.equal(batch.targets, plain["target"]) and torch.equal(batch.labels, LABELS)
    assert torch.equal(batch.mask, plain["target"] != PAD)
    assert batch.net_input.keys() == plain["net_input"].keys()
    for name, value in plain["net_input"].items():
        assert torch.equal(batch.net_input[name], value), name
    assert "<neg>" in [SYMBOLS[i] for i in marked["target"][:, 0]]  # and the caller's sample is left alone


@pytest.mark.parametrize("k", (1, 3))
def test_the_steps_are_the_losses_of_this_package(k):
    model, plain = Model(), sample_of(SOURCES, REPLIES)
    marked = sample_of(SOURCES, [f"{mark} {reply}" for mark, reply in zip(MARKS, REPLIES, strict=True)])
    batch = labelled_batch(marked, WORDS, LABEL_IDS)
    logits, mask = plain_logits(model, plain), plain["target"] != PAD

    def draws() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    step = cringe_step(model, batch, alpha=0.7, k=k, detach_positive=False, generator=draws())
    wanted = cringe_loss(logits, plain["target"], LABELS, mask, k=k, alpha=0.7, generator=draws())
    assert step.sample_size == 9 == step.log["ntokens"] and step.log["nsentences"] == 3
    torch.testing.assert_close(step.loss / step.sample_size, wanted.loss, atol=1e-12, rtol=0)
    assert (step.log["follow_tokens"], step.log["avoid_tokens"]) == (7, 2)
    torch.testing.assert_close(step.log["follow_loss"] + 0.7 * step.log["avoid_loss"], step.log["loss"])

    step = unlikelihood_step(model, batch, alpha=0.7)
    separate = unlikelihood_loss(logits, plain["target"], LABELS, mask, alpha=0.7)
    assert step.sample_size == 1 and step.log["ntokens"] == 9
    torch.testing.assert_close(step.loss, separate.loss, atol=1e-12, rtol=0)
    means = step.log["follow_loss"] / 7 + 0.7 * step.log["avoid_loss"] / 2
    torch.testing.assert_close(means, step.loss.detach(), atol=1e-12, rtol=0)


def test_a_step_of_pairs_is_the_pairwise_loss():
    """The second line is ordinary talk; padding on both sides; the rejected reply of the third has its own source."""
    model = Model()
    sample = sample_of(SOURCES, ["a b <rejected> f", "c", "d e f <rejected> a a"])
    batch = pairs_batch(sample, WORDS, symbol_id(WORDS, "<rejected>"))
    assert batch.example.tolist() == [0, 2] and len(batch.targets) == 5
    step = pairwise_cringe_step(model, batch, alpha=0.7, k=1, margin=1.0, temperature=2.0, generator=None)
    chosen, rejected = sample_of(SOURCES, REPLIES), sample_of([SOURCES[0], SOURCES[2]], ["f", "a a"])
    longest = chosen["target"].size(1)
    assert torch.equal(batch.net_input["prev_output_tokens"][:3], chosen["net_input"]["prev_output_tokens"])
    wanted = pairwise_cringe_loss(
        plain_logits(model, chosen),
        chosen["target"],
        chosen["target"] != PAD,
        plain_logits(model, rejected),
        rejected["target"],
        rejected["target"] != PAD,
        example=torch.tensor([0, 2]),
        margin=1.0,
        temperature=2.0,
        alpha=0.7,
        generator=None,
    )
    # Tokens: 3 + 2 of the first pair, 2 of talk, 4 + 3 of the second pair.
    assert step.sample_size == 14 and step.log["ntokens"] == 14 and step.log["pairs"] == 2
    torch.testing.assert_close(step.loss / step.sample_size, wanted.loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(step.log["gates"], wanted.gates.sum())
    # The model never saw the separator, and one forward does for all.
    assert len(model.seen) == 3 and not (model.seen[0] == symbol_id(WORDS, "<rejected>")).any()
    assert model.seen[0].shape == (5, longest)


def test_a_batch_of_talk_alone_needs_no_pairs():
    model, sample = Model(), sample_of(SOURCES, REPLIES)
    step = pairwise_cringe_step(
        model, pairs_batch(sample, WORDS, 7), alpha=1.0, k=1, margin=0.0, temperature=10.0, generator=None
    )
    scores = plain_logits(model, sample).transpose(1, 2)
    wanted = torch.nn.functional.cross_entropy(scores, sample["target"], ignore_index=PAD)
    assert step.sample_size == 9 and step.log["pairs"] == 0
    torch.testing.assert_close(step.loss / 9, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("criterion", ("cringe", "pairwise_cringe"))
def test_a_batch_may_be_split(criterion):
    """fairseq adds losses and sample sizes of processes and accumulated batches: the gradient stays the same."""
    model = Model()

    def step(rows: slice) -> Step:
        if criterion == "cringe":
            lines = [f"{mark} {reply}" for mark, reply in zip(MARKS, REPLIES, strict=True)]
            batch = labelled_batch(sample_of(SOURCES[rows], lines[rows]), WORDS, LABEL_IDS)
            return cringe_step(model, batch, alpha=0.7, k=1, detach_positive=False, generator=None)
        lines = ["a b <rejected> f", "c", "d e f <rejected> a a"]
        pairs = pairs_batch(sample_of(SOURCES[rows], lines[rows]), WORDS, 7)
        return pairwise_cringe_step(model, pairs, alpha=0.7, k=1, margin=0.0, temperature=2.0, generator=None)

    whole, parts = step(slice(None)), [step(slice(0, 1)), step(slice(1, None))]
    assert whole.sample_size == sum(part.sample_size for part in parts)
    torch.testing.assert_close(whole.loss, torch.stack([part.loss for part in parts]).sum(), atol=1e-12, rtol=0)


def test_lines_and_dictionaries_without_labels_are_refused():
    with pytest.raises(SafetyError, match=r"1 of 3 target lines .* <pos>, <neg>, <none>"):
        labelled_batch(sample_of(SOURCES, ["<pos> a", "b", "<neg> c"]), WORDS, LABEL_IDS)
    with pytest.raises(SafetyError, match="no word '<neg>'"):
        symbol_id(Words(SYMBOLS[:4]), "<neg>")
    for line in ("a <rejected> b <rejected> c", "<rejected> b", "a <rejected>"):
        with pytest.raises(SafetyError, match=r"A target line has \d replies"):
            pairs_batch(sample_of(SOURCES[:1], [line]), WORDS, 7)
    with pytest.raises(SafetyError, match="no prev_output_tokens"):
        pairs_batch(sample_of(None, ["a <rejected> b"]), WORDS, 7)


@pytest.mark.parametrize("row", ("<pos> a b </s> <neg> c d", "<pos> a <none> b", "<neg> a <rejected> b"))
def test_labels_within_a_line_are_refused(row):
    """Two lines in one block, as --sample-break-mode complete makes them: the second label was learned as text."""
    for sources in (None, SOURCES[:1]):
        with pytest.raises(SafetyError, match="stands within a target line"):
            labelled_batch(sample_of(sources, [row]), WORDS, LABEL_IDS)


def test_labels_in_pairs_are_refused():
    for line in ("<neg> a <rejected> b", "<pos> a"):
        with pytest.raises(SafetyError, match="stands within a target line"):
            pairs_batch(sample_of(SOURCES[:1], [line]), WORDS, 7)
    # A dictionary without such words has <unk> for each, which is no label.
    few = Words([*SYMBOLS[:4], "<rejected>", *SYMBOLS[8:]])
    sample = {"net_input": {"prev_output_tokens": torch.tensor([[2, 3]]), "src_tokens": torch.tensor([[5, 2]])}}
    sample |= {"target": torch.tensor([[3, 2]])}
    sample["net_input"]["src_lengths"] = torch.tensor([2])
    assert pairs_batch(sample, few, 4).targets.tolist() == [[3, 2]]


def test_a_model_without_a_score_for_each_word_is_refused():
    model = Model()
    model.decoder = torch.nn.Module()
    model.decoder.adaptive_softmax = torch.nn.Linear(1, 1)
    batch = labelled_batch(sample_of(SOURCES[:1], ["<pos> a"]), WORDS, LABEL_IDS)
    with pytest.raises(SafetyError, match="adaptive softmax"):
        unlikelihood_step(model, batch, alpha=1.0)


class _Recorder:
    """As `fairseq.logging.metrics`."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}

    def log_scalar(self, name: str, value: float, weight: float, round: int) -> None:  # noqa: A002  fairseq's word
        self.scalars[name] = value

    def log_derived(self, name: str, function: Any) -> None:
        self.scalars[name] = -1


def test_the_registered_criterions_pass_their_options_on(monkeypatch):
    """With a stand-in for the fairseq package, of which only the names matter."""
    registered: dict[str, tuple[type[Any], type[Any]]] = {}
    recorder = _Recorder()

    def register(name: str, dataclass: type[Any]) -> Any:
        return lambda kind: registered.setdefault(name, (kind, dataclass))[0]

    class Criterion(torch.nn.Module):
        def __init__(self, task: Any) -> None:
            super().__init__()

    stand_in = {name: ModuleType(name) for name in ("fairseq", "fairseq.criterions", "fairseq.dataclass")}
    stand_in["fairseq"].utils = None
    stand_in["fairseq.criterions"].FairseqCriterion = Criterion
    stand_in["fairseq.criterions"].register_criterion = register
    stand_in["fairseq.dataclass"].FairseqDataclass = object
    stand_in["fairseq.logging"] = ModuleType("fairseq.logging")
    stand_in["fairseq.logging"].metrics = recorder
    for name, module in stand_in.items():
        monkeypatch.setitem(sys.modules, name, module)
    runpy.run_path(str(Path(batches.__file__).parent / "user_dir" / "safety_criterions" / "__init__.py"))
    assert sorted(registered) == ["cringe", "pairwise_cringe", "unlikelihood"]

    task, model = SimpleNamespace(target_dictionary=WORDS), Model()
    marked = sample_of(SOURCES, [f"{mark} {reply}" for mark, reply in zip(MARKS, REPLIES, strict=True)])
    paired = sample_of(SOURCES, ["a b <rejected> f", "c", "d e f <rejected> a a"])

    def run(name: str, sample: dict[str, Any], **options: Any) -> Step:
        kind, dataclass = registered[name]
        cfg = dataclass()
        assert set(options) <= set(vars(cfg))
        vars(cfg).update(options)
        step = kind(task, cfg)(model, sample)
        kind.reduce_metrics([step.log, step.log])
        # Two processes with the same batch: the mean is that of one, in bits.
        assert recorder.scalars["loss"] == pytest.approx(step.loss.item() / step.sample_size / math.log(2))
        assert {"follow_loss", "avoid_loss", "ppl"} <= recorder.scalars.keys()
        return step

    labelled = labelled_batch(marked, WORDS, LABEL_IDS)
    draws = torch.Generator().manual_seed(4)
    wanted = cringe_step(model, labelled, alpha=0.3, k=3, detach_positive=True, generator=draws)
    found = run("cringe", marked, cringe_alpha=0.3, cringe_k=3, cringe_detach_positive=True, cringe_seed=4)
    torch.testing.assert_close(found.loss, wanted.loss, atol=0, rtol=0)
    for one, other in zip(*(torch.autograd.grad(step.loss, model.table) for step in (found, wanted)), strict=True):
        assert torch.equal(one, other)
    wanted = unlikelihood_step(model, labelled, alpha=0.3)
    assert torch.equal(run("unlikelihood", marked, unlikelihood_alpha=0.3).loss, wanted.loss)
    pairs = pairs_batch(paired, WORDS, symbol_id(WORDS, "<rejected>"))
    draws = torch.Generator().manual_seed(4)
    wanted = pairwise_cringe_step(model, pairs, alpha=0.3, k=2, margin=1.0, temperature=3.0, generator=draws)
    settings = {"cringe_alpha": 0.3, "cringe_k": 2, "pairwise_margin": 1.0, "pairwise_temperature": 3.0}
    assert torch.equal(run("pairwise_cringe", paired, **settings, cringe_seed=4).loss, wanted.loss)
    assert recorder.scalars["gate"] == pytest.approx(wanted.log["gates"].item() / 2)
    for name, word in (("cringe", "<neg>"), ("pairwise_cringe", "<rejected>")):
        with pytest.raises(SafetyError, match=f"no word '{word}'"):
            registered[name][0](SimpleNamespace(target_dictionary=Words(SYMBOLS[:4])), registered[name][1]())


def test_the_folder_for_user_dir_is_printed_and_holds_one_package():
    """fairseq puts its parent on the path: nothing there may hide another package."""
    printed = subprocess.run(
        [sys.executable, "-m", "parlai_safety.integrations.fairseq_user"], capture_output=True, text=True, check=True
    ).stdout.strip()
    folder = Path(printed)
    assert folder.name == "safety_criterions" and (folder / "__init__.py").is_file()
    assert [path.name for path in folder.parent.iterdir()] == ["safety_criterions"]

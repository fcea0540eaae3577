"""`parlai safety_adpo`: adversarial DPO and what it is compared with, from supervised fine-tuning to one table.

Source: Kim and Lee 2024, arXiv:2405.12900; the closed form of its loss is a reconstruction (`losses.adpo`). The base
model learns toxic replies behind a control token, from one half of the labelled conversations. To the contexts of the
other half it says, without the token, what the labeller sorts into chosen and rejected replies, and behind it toxic
ones. Each method of the recipe then goes on from the base model with these triples, or starts anew; a judge that
labelled nothing grades all, beside evasiveness, coherence and perplexity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.page import percent
from parlai_safety.evaluation.report import Report
from parlai_safety.evaluation.statistics import rate
from parlai_safety.evaluation.suites import distinct_contexts, spread
from parlai_safety.files import read_jsonl, write_jsonl
from parlai_safety.judges.verdict import is_unsafe, safe_score
from parlai_safety.loops.job import Job, System
from parlai_safety.loops.known import TOXIC
from parlai_safety.loops.methods import MethodsRecipe, compare, own_stage
from parlai_safety.loops.training import quiet
from parlai_safety.loops.triples import SAMPLES, Drawn, make_triples, read_samples
from parlai_safety.tasks.common import in_part

SFT_PART, TRIPLES_PART = "first", "second"
"""Parts of the labelled training conversations: what models learn from, and whose contexts are answered."""
KINDS = {"triples": "triples", "toxic_pairs": "with_toxic", "all_pairs": "triples", "labelled_triples": "triples"}
"""What a method can learn from triples -> the count that says whether there is any."""


@dataclass(frozen=True)
class PreferenceRecipe(MethodsRecipe):
    """The settings of the comparison; see `projects/adpo/adpo.yaml` for each key with its meaning."""

    example: ClassVar[str] = "adpo/adpo"
    required: ClassVar[dict[str, set[str]]] = {
        **MethodsRecipe.required,
        "own": {"contexts", "samples", "toxic_samples", "decoding", "weight"},
    }
    own_counts: ClassVar[tuple[str, ...]] = (*MethodsRecipe.own_counts, "toxic_samples")
    kept: ClassVar[Mapping[str, str]] = KINDS
    title: ClassVar[str] = "Adversarial DPO and what it is compared with"

    def job(self, out: Path, seed: int, data: Path | None) -> Job:
        """A job whose models learn from the first part of the conversations, and whose talk is scored too."""
        return Job(self, out, seed, data, part=SFT_PART, talk_scores=True)

    def check(self) -> None:
        """As for methods; and the base model learns the control token.

        Raises:
            SafetyError: it does not.
        """
        super().check()
        if self.base.get("view") != TOXIC or not self.model.get("toxic_token"):
            raise SafetyError(
                f"The recipe has base: view: {self.base.get('view')} and model: toxic_token: "
                f"{self.model.get('toxic_token')}",
                "Toxic replies are drawn behind the control token, which the base model has to learn",
                f"Write base: {{view: {TOXIC}, …}} and model: {{toxic_token: true, …}}",
            )

    def make_own(self, job: Job, system: System, kind: str, number: int) -> dict[str, Any]:
        """Triples of a system's own replies to the contexts that no model of the job has learnt from."""

        def work(folder: Path) -> dict[str, Any]:
            rows = in_part(job.source.adversarial("train"), TRIPLES_PART)
            contexts = spread(distinct_contexts(rows), self.own["contexts"])
            with quiet():
                made = make_triples(
                    job.agent(system, **self.own["decoding"]),
                    job.judge("labeller"),
                    contexts,
                    folder,
                    samples=self.own["samples"],
                    toxic_samples=self.own["toxic_samples"],
                    seed=job.seed,
                )
            triples = list(read_jsonl(folder / "triples.jsonl"))
            write_jsonl(folder / "toxic_pairs.jsonl", _toxic_pairs(triples))
            write_jsonl(folder / "all_pairs.jsonl", _all_pairs(triples))
            write_jsonl(folder / "labelled_triples.jsonl", _labelled(triples))
            unsafe = _unsafe_shares(read_samples(folder / SAMPLES), job)
            counts = made.contexts
            return {
                **made._asdict(),
                "triples": counts["triples"] + counts["pairs"],
                "with_toxic": counts["triples"],
                "share_unsafe": unsafe,
            }

        return job.run.stage(own_stage(system), work, {"of": system.key, **self.own})

    def own_note(self, of: str, own: Mapping[str, Any]) -> str:
        """What the report says of the triples."""
        shares = own["share_unsafe"]
        return (
            f"Triples of {of}: replies to {own['contexts']['asked']} contexts that no model here has learnt from. "
            f"Unsafe by the labeller and by the grader are {_both(shares['plain'])} of those without the token and "
            f"{_both(shares['toxic'])} of those behind it. {own['triples']} contexts have a chosen and a rejected "
            f"reply, and {own['with_toxic']} of these a toxic one too."
        )

    def notes(self) -> list[str]:
        """What the report says of all methods."""
        batch = {**self.optimisation, **self.budget}.get("batchsize", 1)
        return [
            "The loss of adversarial DPO is a reconstruction: arXiv:2405.12900's closed form could not be confirmed.",
            f"Every method goes on from the base model for {self.budget['steps']} updates of {batch} contexts with one "
            "learning rate, unless the recipe says otherwise.",
            "The base model is the supervised fine-tuning with the control token, and answers without it here.",
        ]


def run_preferences(*, recipe_path: Path, out: Path, seed: int, data: Path | None, command: str) -> Report:
    """Train and measure every method of a recipe, or what is left of them; see `run_methods`."""
    return compare(PreferenceRecipe.read(recipe_path), out=out, seed=seed, data=data, command=command)


def _unsafe_shares(drawn: list[Drawn], job: Job) -> dict[str, dict[str, float | None]]:
    """The share of unsafe replies among the plain and the toxic ones, by each of the two judges."""
    judges = {role: job.judge(role) for role in ("labeller", "grader")}
    found: dict[str, dict[str, float | None]] = {}
    for kind in ("plain", "toxic"):
        said = [(sample, item.context) for item in drawn for sample in getattr(item, kind)]
        texts, contexts = [sample.text for sample, _ in said], [context for _, context in said]
        verdicts = {"labeller": [sample.verdict for sample, _ in said]}
        verdicts["grader"] = safe_score(judges["grader"], texts, contexts, ["bot"] * len(texts))
        found[kind] = {
            role: rate([is_unsafe(verdict, judges[role].threshold) for verdict in given]).value
            for role, given in verdicts.items()
        }
    return found


def _both(shares: Mapping[str, float | None]) -> str:
    return " and ".join(percent(shares[role]) for role in ("labeller", "grader"))


def _toxic_pairs(triples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Chosen against toxic: DPO that never sees an ordinary rejected reply."""
    for row in triples:
        for toxic in row["toxic"]:
            yield {"context": row["context"], "chosen": row["chosen"], "rejected": toxic}


def _all_pairs(triples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Chosen against rejected, and chosen against toxic, for methods that know pairs alone."""
    for row in triples:
        for worse in (row["rejected"], *row["toxic"]):
            yield {"context": row["context"], "chosen": row["chosen"], "rejected": worse}


def _labelled(triples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each reply with a verdict, for methods that know single replies."""
    for row in triples:
        yield {"context": row["context"], "reply": row["chosen"], "classifier_label": "pos"}
        for worse in (row["rejected"], *row["toxic"]):
            yield {"context": row["context"], "reply": worse, "classifier_label": "neg"}

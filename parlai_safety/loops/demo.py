"""The main job: a base chat model, CRINGE, one more CRINGE round on its own judged replies, and an honest report.

Two judges are trained on disjoint halves of the labelled talk. One labels the model's own replies for the iteration;
the other labels nothing and grades all three systems. Source of the method: arXiv:2211.05826, Algorithm 2. It leaves
out further rounds and the other baselines of the paper, which have recipes of their own.

The settings come from a recipe file (YAML); the run folder holds every model, every reply and the report, and a run
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from parlai_safety import __version__, resources
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import likelihood, load_agent, replies
from parlai_safety.evaluation.report import Example as ShownExample
from parlai_safety.evaluation.report import Report, SystemResult, terminal_table, write_report
from parlai_safety.evaluation.statistics import rate
from parlai_safety.evaluation.suites import distinct_contexts, spread
from parlai_safety.evaluation.textmetrics import canned_rate, distinct_n, f1, normalise
from parlai_safety.files import read_jsonl, write_jsonl
from parlai_safety.judges.recipe import card_path, train_two_judges
from parlai_safety.judges.spec import load_judge
from parlai_safety.judges.verdict import Judge, Verdict, is_unsafe, unscored
from parlai_safety.loops.sources import Source, source_of
from parlai_safety.loops.training import quiet, train
from parlai_safety.runs import Journal, Run, hardware, progress, versions
from parlai_safety.tasks.common import Row

COPIES_OF_A_POSITIVE = 2  # arXiv:2211.05826, released recipe: an identical positive reply at most twice
SHOWN_EXAMPLES = 12


_REQUIRED = {
    "base": {"steps", "learningrate"},
    "cringe": {"steps", "learningrate"},
    "iteration": {"contexts", "samples", "decoding", "weight", "steps"},
    "evaluation": {"adversarial", "ordinary", "perplexity_dialogues"},
    "real_data": {"chat_max_dialogues", "labels_weight"},
}
_CLOSED = ("iteration", "evaluation", "real_data")


@dataclass(frozen=True)
class Recipe:
    """The settings of a run, read from YAML; see `projects/cringe/demo.yaml` for each key with its meaning."""

    vocabulary: int
    model: dict[str, Any]
    optimisation: dict[str, Any]
    base: dict[str, Any]
    cringe: dict[str, Any]
    iteration: dict[str, Any]
    decoding: dict[str, Any]
    evaluation: dict[str, Any]
    real_data: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe file.

        Raises:
            SafetyError: the file is no YAML mapping, or a section is missing or unknown.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SafetyError(
                f"The recipe {str(path)!r} is not YAML ({error})".replace("\n", " "),
                "A recipe is a YAML file with one section a step",
                "Start from a copy of projects/cringe/demo.yaml",
            ) from error
        wanted = set(cls.__dataclass_fields__)
        found = set(content) if isinstance(content, dict) else set()
        if wanted != found:
            raise SafetyError(
                f"The recipe {str(path)!r} lacks {sorted(wanted - found)} and has unknown {sorted(found - wanted)}",
                "Every section must be there, since none of them has a default",
                "Start from a copy of projects/cringe/demo.yaml",
            )
        for section, keys in _REQUIRED.items():
            found = set(content[section]) if isinstance(content[section], dict) else set()
            if not keys <= found or (section in _CLOSED and found != keys):
                raise SafetyError(
                    f"The section {section!r} of {str(path)!r} has the keys {sorted(found)}",
                    f"It needs {sorted(keys)}{' and takes no others' if section in _CLOSED else ''}",
                    "Compare it with projects/cringe/demo.yaml, which has every key with its meaning",
                )
        return cls(**content)


def run_demo(*, recipe_path: Path, out: Path, seed: int, data: Path | None, command: str) -> Report:
    """Run the whole job, or what is left of it.

    Args:
        recipe_path: the recipe file.
        out: the run folder.
        seed: of everything that is random.
        data: a folder of real data, or None for the corpus that ships.
        command: what the user typed, for the report.

    Returns:
        The report; `report.html`, `report.json` and `report.md` are in the run folder.
    """
    recipe = Recipe.read(recipe_path)
    source = source_of(data, **recipe.real_data)
    settings = {"recipe": vars(recipe), "seed": seed, "data": source.hashes, "version": __version__}
    job = _Job(Run(out, json.loads(json.dumps(settings))), recipe, source, seed)
    return job.report(command)


class _Job:
    """The stages, in order; each one asks for the ones it needs."""

    def __init__(self, run: Run, recipe: Recipe, source: Source, seed: int) -> None:
        self.run, self.recipe, self.source, self.seed = run, recipe, source, seed
        self.folder = run.folder

    def report(self, command: str) -> Report:
        """Train and measure everything, then write the report."""
        judges = self.run.stage("judges", self._train_judges)
        self.run.stage("vocabulary", self._train_vocabulary)
        # Each system: its name in the report, its folder, and the stages whose time it took.
        trained = [("base", "base", [self.run.stage("base", self._train_base)])]
        if self.recipe.base.get("control"):
            trained.append(("base, trained on", "control", [self.run.stage("control", self._train_control)]))
        trained.append(("CRINGE", "cringe", [self.run.stage("cringe", self._train_cringe)]))
        made = self.run.stage("replies", self._collect_replies)
        trained.append(("CRINGE iterated", "iterated", [made, self.run.stage("iterated", self._train_iterated)]))
        systems = [
            self._evaluate(name, folder, sum(stage["seconds"] for stage in stages)) for name, folder, stages in trained
        ]
        report = Report(
            title="CRINGE: a base chat model, one round, and one more round on its own judged replies",
            systems=systems,
            judge=judges["grader"],
            seed=self.seed,
            versions=versions(),
            data={"name": self.source.name, "files": self.source.hashes, "replies": made},
            commands=[command],
            hardware=hardware(),
            notes=self._notes(judges, made),
        )
        write_report(report, self.folder)
        return report

    def _notes(self, judges: dict[str, Any], replies_made: dict[str, Any]) -> list[str]:
        def figure(value: float | None) -> str:
            return "n/a" if value is None else f"{value:.2f}"

        notes = [
            "The judge that grades (above) labelled nothing. Another judge, trained on the other half of the labelled "
            "talk, labelled the replies of the iteration. On that talk the two agree with a rank correlation of "
            f"{figure(judges['spearman'])} (Spearman) and a kappa of {figure(judges['kappa'])}.",
            "Both judges and CRINGE learnt from labelled talk of the training split: the judges from a half of it "
            "each, CRINGE from all of it. The grader is independent of the labeller, not of the labels' annotators.",
            "CRINGE goes on from the base model, and its iteration from CRINGE, so each has been trained for longer; "
            'only a system "base, trained on", where the table has one, tells what longer training does by itself.',
            "Replies are decoded with " + ", ".join(f"{k} {v}" for k, v in self.recipe.decoding.items()) + ".",
            "Perplexity and F1 are on ordinary talk of the test split, the unsafe rate on adversarial contexts of it; "
            "distinct-2 and the canned share are over both sets of replies.",
        ]
        if not replies_made["kept"]:
            notes.append(
                f"Of {replies_made['generated']} own replies the labeller called {replies_made['unsafe']} unsafe, so "
                "no balanced sample could be drawn: the iteration had no replies to learn from."
            )
        return notes

    # --- judges ---------------------------------------------------------------------------------------------------

    def _train_judges(self, folder: Path) -> dict[str, Any]:
        examples, source = self.source.judge_examples(self.seed), self.source
        two = train_two_judges(examples, seed=self.seed, folder=folder, data=source.name, files=source.hashes)
        return {
            "grader": _card(two.grader_path, "graded every system and labelled nothing"),
            "labeller": _card(two.labeller_path, "labelled the replies of the iteration"),
            "spearman": two.agreement.spearman,
            "kappa": two.agreement.kappa,
        }

    def _judge(self, role: str) -> Judge:
        return load_judge(f"linear:{self.folder / 'judges' / role}.npz")

    # --- models ---------------------------------------------------------------------------------------------------

    def _train_vocabulary(self, folder: Path) -> dict[str, Any]:
        from tokenizers import ByteLevelBPETokenizer

        tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
        rows = itertools.chain(self.source.ordinary("train"), self.source.adversarial("train"))
        texts = (text for row in rows for text in (*row.context[-1:], row.reply))
        tokenizer.train_from_iterator(texts, vocab_size=self.recipe.vocabulary, show_progress=False)
        tokenizer.save_model(str(folder), "bpe")
        return {"size": tokenizer.get_vocab_size()}

    def _options(self) -> dict[str, Any]:
        vocabulary = self.folder / "vocabulary"
        return {
            "dict_tokenizer": "bytelevelbpe",
            "bpe_vocab": str(vocabulary / "bpe-vocab.json"),
            "bpe_merge": str(vocabulary / "bpe-merges.txt"),
            "dict_maxexs": 0,  # the vocabulary is learnt already, and ParlAI would read all data to count its words
            "skip_generation": True,
            **self.recipe.model,
            **self.recipe.optimisation,
            **self.source.task_options,
        }

    def _train(self, title: str, folder: Path, tasks: dict[str, float], section: dict[str, Any], **more: Any) -> None:
        options = {key: value for key, value in section.items() if key not in ("steps", "control")}
        train(
            title,
            model_file=folder / "model",
            max_train_steps=section["steps"],
            seed=self.seed,
            task=",".join(tasks),
            multitask_weights=list(tasks.values()) if len(tasks) > 1 else [1],
            **self._options(),
            **options,
            **more,
        )

    def _train_base(self, folder: Path) -> dict[str, Any]:
        self._train("base", folder, self.source.plain_tasks, self.recipe.base, model="transformer/generator")
        return {"steps": self.recipe.base["steps"]}

    def _train_control(self, folder: Path) -> dict[str, Any]:
        section = {k: v for k, v in self.recipe.cringe.items() if not k.startswith("cringe_")}
        section["steps"] += self.recipe.iteration["steps"]
        self._train(
            "base, trained on", folder, self.source.plain_tasks, section,
            model="transformer/generator", init_model=str(self.folder / "base" / "model"),
        )  # fmt: skip
        return {"steps": section["steps"]}

    def _train_cringe(self, folder: Path) -> dict[str, Any]:
        self._train(
            "CRINGE", folder, self.source.reply_tasks, self.recipe.cringe,
            model="safety:cringe", init_model=str(self.folder / "base" / "model"),
        )  # fmt: skip
        return {"steps": self.recipe.cringe["steps"]}

    def _train_iterated(self, folder: Path) -> dict[str, Any]:
        tasks = dict(self.source.reply_tasks)
        more = {}
        if self.run.result("replies")["kept"]:  # else the labeller found replies of one kind only: see the notes
            tasks["safety:file"] = self.recipe.iteration["weight"]
            more["safety_file"] = str(self.folder / "replies" / "labelled.jsonl")
        section = {**self.recipe.cringe, "steps": self.recipe.iteration["steps"]}
        self._train(
            "CRINGE iterated", folder, tasks, section,
            model="safety:cringe",
            init_model=str(self.folder / "cringe" / "model"),
            **more,
        )  # fmt: skip
        return {"steps": section["steps"]}

    # --- the iteration's data -------------------------------------------------------------------------------------

    def _collect_replies(self, folder: Path) -> dict[str, Any]:
        """Algorithm 2: answer the original training contexts, label the answers, keep as many of each kind."""
        settings = self.recipe.iteration
        contexts = spread(distinct_contexts(self.source.adversarial("train")), settings["contexts"])
        contexts = [context for context in contexts for _ in range(settings["samples"])]
        said = self._answers("cringe", contexts, folder / "generated.jsonl", settings["decoding"])
        labeller = self._judge("labeller")
        verdicts, threshold = score(labeller, said, contexts), labeller.threshold
        chosen = balanced(said, verdicts, threshold, random.Random(self.seed))
        rows = (
            {
                "context": contexts[i],
                "reply": said[i],
                "classifier_label": "neg" if is_unsafe(verdicts[i], threshold) else "pos",
                "toxicity": verdicts[i].p_unsafe,
                "speaker": "bot",
                "provenance": {"generator": "CRINGE", "judge": "labeller", "seed": self.seed, "round": 1},
            }
            for i in chosen
        )
        count = write_jsonl(folder / "labelled.jsonl", rows)
        unsafe = sum(bool(is_unsafe(v, threshold)) for v in verdicts)
        missing = sum(v.p_unsafe is None for v in verdicts)
        return {"generated": len(said), "unsafe": unsafe, "unscored": missing, "kept": count}

    def _answers(
        self, system: str, contexts: Sequence[Sequence[str]], path: Path, decoding: dict[str, Any]
    ) -> list[str | None]:
        """The replies of a system, kept batch by batch, so that an interrupted run repeats none of them."""
        if path.is_file():
            return [row["reply"] for row in read_jsonl(path)]
        seed = zlib.crc32(f"{self.seed} {system} {path.stem}".encode())
        with quiet(), Journal(path.with_suffix(".part.jsonl")) as journal:
            known = dict(journal.rows)
            before = frozenset(known)
            agent = load_agent(str(self.folder / system / "model"), loglevel="error", **decoding)
            with progress(f"{path.parent.name}: replies", len(contexts), len(known)) as advance:
                for i, text, _ in replies(agent, contexts, seed=seed, known=before, progress=advance):
                    known[i] = text
                    journal.append([[i, text]])
        said = [known[i] for i in range(len(contexts))]
        write_jsonl(path, ({"context": list(c), "reply": text} for c, text in zip(contexts, said, strict=True)))
        journal.path.unlink()
        return said

    # --- evaluation -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def _test_contexts(self) -> tuple[list[list[str]], list[Row]]:
        """Adversarial contexts and ordinary rows of the test split: the same for every system, so read once."""
        settings = self.recipe.evaluation
        hostile = spread(distinct_contexts(self.source.adversarial("test")), settings["adversarial"])
        return hostile, spread(list(self.source.ordinary("test")), settings["ordinary"])

    def _evaluate(self, name: str, system: str, training_seconds: float) -> SystemResult:
        settings = self.recipe.evaluation
        hostile, ordinary = self._test_contexts
        judges = {role: self._judge(role) for role in ("grader", "labeller")}

        def measure(folder: Path) -> dict[str, Any]:
            decoding = self.recipe.decoding
            said = self._answers(system, hostile, folder / "adversarial.jsonl", decoding)
            chat = self._answers(system, [row.context for row in ordinary], folder / "ordinary.jsonl", decoding)
            with quiet():
                agent = load_agent(str(self.folder / system / "model"), loglevel="error")
                fit = likelihood(
                    agent,
                    self.source.ordinary_task,
                    **{**self.source.task_options, "chat_max_dialogues": settings["perplexity_dialogues"]},
                )
            judged = {role: score(judge, said, hostile) for role, judge in judges.items()}
            f1s = [f1(text or "", [row.reply]) for text, row in zip(chat, ordinary, strict=True)]
            every = [text for text in (*said, *chat) if text]
            return {
                "verdicts": {role: [list(v) for v in verdicts] for role, verdicts in judged.items()},
                "perplexity": fit.perplexity,
                "f1": sum(f1s) / len(f1s),
                "distinct_2": distinct_n(every, 2),
                "canned_rate": canned_rate(every).rate,
            }

        result = self.run.stage(f"evaluation/{system}", measure)
        said = self._answers(system, hostile, self.folder / "evaluation" / system / "adversarial.jsonl", {})
        verdicts = {role: [Verdict(*v) for v in listed] for role, listed in result["verdicts"].items()}
        graded, labelled = (
            rate([is_unsafe(v, judges[role].threshold) for v in verdicts[role]]) for role in ("grader", "labeller")
        )
        return SystemResult(
            name=name,
            unsafe_rate=graded.value,
            unsafe_interval=graded.interval,
            n=graded.n,
            unscored=graded.unscored,
            perplexity=result["perplexity"],
            f1=result["f1"],
            distinct_2=result["distinct_2"],
            canned_rate=result["canned_rate"],
            seconds=training_seconds + result["seconds"],
            examples=_shown(hostile, said, verdicts["grader"], judges["grader"].threshold),
            extra={"unsafe_rate_by_labeller": labelled.value, "unsafe_interval_by_labeller": labelled.interval},
        )


def score(judge: Judge, said: Sequence[str | None], contexts: Sequence[Sequence[str]]) -> list[Verdict]:
    """Judge bot replies; a reply that was not given is unscored."""
    given = [i for i, text in enumerate(said) if text is not None]
    verdicts = [unscored("the model gave no reply")] * len(said)
    scored = judge.score([said[i] or "" for i in given], [contexts[i] for i in given], ["bot"] * len(given))
    for i, verdict in zip(given, scored, strict=True):
        verdicts[i] = verdict
    return verdicts


def balanced(
    said: Sequence[str | None], verdicts: Sequence[Verdict], threshold: float, generator: random.Random
) -> list[int]:
    """Choose as many safe as unsafe replies at random, an identical safe reply at most twice.

    Source: the released recipe of arXiv:2211.05826. Deviation: it takes the first ones of the log; here a seeded sample
    is drawn, so that no order of the log decides.

    Args:
        said: the replies; None where there is none.
        verdicts: one a reply; unscored ones are never chosen.
        threshold: of the judge.
        generator: draws the sample.

    Returns:
        Indices in rising order, half of them safe; empty where either kind is missing.
    """
    negatives = [i for i, v in enumerate(verdicts) if is_unsafe(v, threshold) is True]
    candidates = [i for i, v in enumerate(verdicts) if is_unsafe(v, threshold) is False]
    generator.shuffle(candidates)
    copies: Counter[str] = Counter()
    positives = []
    for i in candidates:
        text = normalise(said[i] or "")
        if copies[text] < COPIES_OF_A_POSITIVE:
            copies[text] += 1
            positives.append(i)
    count = min(len(positives), len(negatives))
    return sorted(generator.sample(positives, count) + generator.sample(negatives, count))


def _shown(
    contexts: Sequence[Sequence[str]], said: Sequence[str | None], verdicts: Sequence[Verdict], threshold: float
) -> list[ShownExample]:
    words = {True: "unsafe", False: "safe", None: "unscored"}
    chosen = spread(range(len(contexts)), SHOWN_EXAMPLES)
    return [
        ShownExample(
            context=contexts[i],
            reply=said[i] or "",
            p_unsafe=verdicts[i].p_unsafe,
            verdict=words[is_unsafe(verdicts[i], threshold)],  # type: ignore[arg-type]
        )
        for i in chosen
    ]


def _card(path: Path, role: str) -> dict[str, Any]:
    """What the report shows of a judge, from the card beside its file."""
    card = json.loads(card_path(path).read_text(encoding="utf-8"))
    # The systems are bots in adversarial contexts, so the judge is shown as it is on labelled bot turns.
    quality, training = card["quality_labelled_bot_turns"], card["trained_on"]["by_source"]
    return {
        "spec": f"linear:{path.name}",
        "description": f"a logistic regression over words and characters in context, which {role}",
        **{key: quality[key] for key in ("auc", "sensitivity", "specificity")},
        "threshold": card["threshold"],
        "trained_on": ", ".join(f"{name} ({c['safe']} safe, {c['unsafe']} unsafe)" for name, c in training.items()),
        "measured_on": f"labelled bot turns of {card['measured_on']['name']}, n {quality['n']}",
        "on everything there": {key: card["quality"][key] for key in ("n", "auc", "sensitivity", "specificity")},
        "ordinary talk flagged": card["quality"]["ordinary_false_positive_rate"],
        "sha256": card["sha256"],
    }


def summary(report: Report, out: Path) -> str:
    """What the terminal shows at the end."""
    page = out / "report.html"
    return f"\n{terminal_table(report)}\n\nThe report, with replies to read behind a warning: {page}\n"


def default_recipe() -> Path:
    """The recipe of `make demo`."""
    return resources.recipe("cringe/demo")

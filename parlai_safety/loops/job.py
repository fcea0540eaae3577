"""What our long jobs share: judges, vocabulary, base model, own replies, training and the evaluation of a system.

A job has a run folder, a recipe, a source of talk and a seed. Each stage leaves its result and is not done twice; a
job that was stopped goes on inside the stage where it stood. The methods are elsewhere: in the agents that a recipe
names. Two judges are trained on disjoint halves of the labelled talk: one labels what models say, the other labels
nothing and grades.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import random
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from parlai.core.opt import Opt

from parlai_safety import __version__
from parlai_safety.agents.generation import sample_replies
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.coherence import ORDINARY_FILE, CoherenceScorer, coherence_scorer
from parlai_safety.evaluation.evasive import evasive_detector
from parlai_safety.evaluation.generate import agent_from, likelihood, load_agent, replies
from parlai_safety.evaluation.report import Example as ShownExample
from parlai_safety.evaluation.report import Report, SystemResult, terminal_table, write_report
from parlai_safety.evaluation.seeds import LEARNING
from parlai_safety.evaluation.statistics import rate
from parlai_safety.evaluation.suites import distinct_contexts, spread
from parlai_safety.evaluation.textmetrics import canned_rate, distinct_n, f1, loop_rate, normalise
from parlai_safety.files import read_jsonl, write_jsonl
from parlai_safety.judges.data import Example, halves
from parlai_safety.judges.linear import cross_fit_linear
from parlai_safety.judges.spec import load_judge
from parlai_safety.judges.verdict import Judge, Verdict, is_unsafe, unscored
from parlai_safety.judges.wordlist import WordListJudge, read_terms
from parlai_safety.loops.known import (
    ALONE,
    TOXIC,
    VIEWS,
    check_number,
    check_one_of,
    check_options,
    decodes,
    option_of_model,
    options_of,
)
from parlai_safety.loops.sources import Source, source_of
from parlai_safety.loops.training import quiet, train
from parlai_safety.resources import cache_folder
from parlai_safety.runs import Journal, Run, hardware, progress, versions
from parlai_safety.tasks.common import Row

COPIES_OF_A_POSITIVE = 2  # arXiv:2211.05826, released recipe: an identical positive reply at most twice
SHOWN_EXAMPLES = 12
PREFIX_JUDGE = "prefix.npz"
BASE_AGENT = "safety:mle"
_TALK = ("evasive", "evasive_interval", "coherence")
TALK_SCORES = (*_TALK, *(f"ordinary_{name}" for name in _TALK), "word_list")
"""What is measured of the talk itself where a job asks for it."""
BASE = "base"

RecipeT = TypeVar("RecipeT", bound="Recipe")
Answers = list[str | None]


@dataclass(frozen=True)
class Recipe:
    """The settings that every job has, read from YAML; see `projects/cringe/demo.yaml` for the meaning of each key."""

    vocabulary: int | None
    model: dict[str, Any]
    optimisation: dict[str, Any]
    base: dict[str, Any]
    decoding: dict[str, Any]
    evaluation: dict[str, Any]
    real_data: dict[str, Any]

    example: ClassVar[str]
    """The shipped recipe that shows every key."""
    required: ClassVar[dict[str, set[str]]] = {
        "model": set(),
        "optimisation": set(),
        "base": {"steps", "learningrate"},
        "decoding": set(),
        "evaluation": {"adversarial", "ordinary", "perplexity_dialogues"},
        "real_data": {"chat_max_dialogues", "labels_weight"},
    }
    """Section -> keys that must be there."""
    closed: ClassVar[tuple[str, ...]] = ("evaluation", "real_data")
    """Sections that take no other keys."""

    @classmethod
    def read(cls: type[RecipeT], path: Path) -> RecipeT:
        """Read a recipe file.

        Raises:
            SafetyError: the file is no YAML mapping, or a section or a key is missing or unknown.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SafetyError(
                f"The recipe {str(path)!r} is not YAML ({error})".replace("\n", " "),
                "A recipe is a YAML file with one section a step",
                f"Start from a copy of projects/{cls.example}.yaml",
            ) from error
        wanted = {field.name for field in fields(cls)}
        found = set(content) if isinstance(content, dict) else set()
        if wanted != found:
            raise SafetyError(
                f"The recipe {str(path)!r} lacks {sorted(wanted - found)} and has unknown {sorted(found - wanted)}",
                "Every section must be there, since none of them has a default",
                f"Start from a copy of projects/{cls.example}.yaml",
            )
        for section, keys in cls.required.items():
            cls.check_section(path, section, content[section], keys, closed=section in cls.closed)
        recipe = cls(**content)
        recipe.check()
        return recipe

    def check(self) -> None:
        """Check what the sections say; each kind of recipe adds what is its own.

        Raises:
            SafetyError: a value is of the wrong kind, or an option is unknown.
        """
        if self.vocabulary is not None:
            check_number(self.vocabulary, "vocabulary", low=300, whole=True)
        check_number(self.base["steps"], "base: steps", low=1, whole=True)
        check_one_of(
            self.base.get("view", "plain"), (*VIEWS, TOXIC), "base: view", "which view of the data it learns from"
        )
        for name in ("adversarial", "ordinary", "perplexity_dialogues"):
            check_number(self.evaluation[name], f"evaluation: {name}", low=1, whole=True)
        for section in ("model", "optimisation", "base", "decoding"):
            names = set(getattr(self, section)) - ({"steps", "control", "view"} if section == "base" else set())
            check_options(BASE_AGENT, names, f"The section {section!r} of the recipe")

    @classmethod
    def check_section(cls, path: Path, section: str, content: Any, keys: set[str], *, closed: bool) -> None:
        """Refuse a section without one of its keys or, where it is closed, with another.

        Raises:
            SafetyError: as said.
        """
        found = set(content) if isinstance(content, dict) else set()
        if not isinstance(content, dict) or not keys <= found or (closed and found != keys):
            raise SafetyError(
                f"The section {section!r} of {str(path)!r} has the keys {sorted(found)}",
                f"It needs {sorted(keys)}{' and takes no others' if closed else ''}",
                f"Compare it with projects/{cls.example}.yaml, which has every key with its meaning",
            )


@dataclass(frozen=True)
class System:
    """A model that is trained, or a way of decoding one.

    Attributes:
        name: in reports.
        key: its folder in the run.
        agent: ParlAI's name of the agent.
        start: the key of the system that it starts from, or decodes; None for the base model.
        view: which view of the data it learns from: plain, reply, positive, negative, toxic (unsafe replies behind
            the toxic control token) or none (own replies alone).
        own: own replies to learn from beside them: a JSONL file, or None.
        weight: of them as one more task, beside the weights of the data's tasks.
        steps: updates; 0 for a way of decoding.
        options: further options of the agent.
        decoding: how replies are asked for, beside the recipe's own way.
    """

    name: str
    key: str
    agent: str
    start: str | None
    view: str = "plain"
    own: Path | None = None
    weight: float = 1.0
    steps: int = 0
    options: Mapping[str, Any] | None = None
    decoding: Mapping[str, Any] | None = None

    @property
    def decodes(self) -> bool:
        """It changes how another model speaks and is not trained."""
        return self.steps == 0


class Job:
    """The stages; a job asks for the ones it needs.

    Args:
        recipe: its settings.
        out: the run folder.
        seed: of everything that is random.
        data: a folder of real data, or None for the corpus that ships.
        part: the part of the training conversations with verdicts that models learn from: all, first or second.
        talk_scores: measure coherence and evasiveness of each system too.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        seed: int,
        data: Path | None,
        *,
        part: str = "all",
        talk_scores: bool = False,
    ) -> None:
        self.recipe, self.seed, self.part = recipe, seed, part
        self.source: Source = source_of(data, **recipe.real_data)
        # What only some stages depend on is theirs to check, so that a run can be given further methods or rounds.
        common = {field.name: getattr(recipe, field.name) for field in fields(Recipe)}
        settings = {"recipe": common, "seed": seed, "data": self.source.hashes, "version": __version__}
        if part != "all":
            settings["part"] = part
        self.run = Run(out, json.loads(json.dumps(settings)))
        self.folder = self.run.folder
        self._talk_scores, self._data = talk_scores, data

    def write_report(
        self, title: str, systems: Sequence[SystemResult], command: str, notes: Sequence[str], **data: Any
    ) -> Report:
        """Write the report of these systems into the run folder."""
        judges = self.run.result("judges")
        report = Report(
            title=title,
            systems=systems,
            judge=judges["grader"],
            seed=self.seed,
            versions=versions(),
            data={"name": self.source.name, "files": self.source.hashes, "recipe": self._recipe_mark(), **data},
            commands=[command],
            hardware=hardware(),
            notes=[*self._common_notes(judges), *notes],
        )
        write_report(report, self.folder)
        return report

    def _recipe_mark(self) -> str:
        """A short hash of the whole recipe, so that runs of two recipes are not taken for one."""
        text = json.dumps(vars(self.recipe), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _common_notes(self, judges: Mapping[str, Any]) -> list[str]:
        def figure(value: float | None) -> str:
            return "n/a" if value is None else f"{value:.2f}"

        return [
            "The judge that grades (above) labelled nothing. Another judge, trained on the other half of the labelled "
            "talk, labelled the models' own replies. On that talk the two agree with a rank correlation of "
            f"{figure(judges['spearman'])} (Spearman) and a kappa of {figure(judges['kappa'])}.",
            "Both judges and the generator learnt from labelled talk of the training split: the judges from a half of "
            f"it each, the generator from {'all of it' if self.part == 'all' else 'a half too'}. The grader is "
            "independent of the labeller, not of the labels' annotators.",
            "Replies are decoded with " + ", ".join(f"{k} {v}" for k, v in self.recipe.decoding.items()) + ".",
            "Perplexity and F1 are on ordinary talk of the test split, the unsafe rate on adversarial contexts of it; "
            "distinct-2 and the canned share are over both sets of replies.",
        ]

    def prepare(self) -> float:
        """Judges, vocabulary and base model, which every system needs; returns the seconds of the base model."""
        self.train_judges()
        self.train_vocabulary()
        return float(self.train_base()["seconds"])

    # --- judges ---------------------------------------------------------------------------------------------------

    def train_judges(self) -> dict[str, Any]:
        """The labeller and the grader."""

        def work(folder: Path) -> dict[str, Any]:
            return self.source.train_judges(folder, self.seed)._asdict()

        return self.run.stage("judges", work)

    def train_prefix_judge(self) -> str:
        """A judge of unfinished replies, from the labeller's half; returns its specification."""

        def work(folder: Path) -> dict[str, Any]:
            half = halves(self.source.judge_examples(self.seed), self.seed).first
            fit = cross_fit_linear(prefixes(half, random.Random(self.seed)), seed=self.seed)
            fit.judge.save(folder / PREFIX_JUDGE)
            return {"threshold": fit.judge.threshold}

        self.run.stage("prefix_judge", work)
        return f"linear:{self.folder / 'prefix_judge' / PREFIX_JUDGE}"

    def judge_spec(self, role: str) -> str:
        """The specification of "labeller" or "grader"."""
        return self.source.judge_spec(self.folder / "judges" / f"{role}.npz")

    def judge(self, role: str) -> Judge:
        """The judge "labeller" or "grader"."""
        return load_judge(self.judge_spec(role))

    # --- models ---------------------------------------------------------------------------------------------------

    def train_vocabulary(self) -> None:
        """A byte-level BPE of the training split; nothing where the recipe brings a dictionary of its own."""
        if self.recipe.vocabulary is None:
            return

        def work(folder: Path) -> dict[str, Any]:
            from tokenizers import ByteLevelBPETokenizer

            tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
            rows = itertools.chain(self.source.ordinary("train"), self.source.adversarial("train"))
            texts = (text for row in rows for text in (*row.context[-1:], row.reply))
            tokenizer.train_from_iterator(texts, vocab_size=self.recipe.vocabulary, show_progress=False)
            tokenizer.save_model(str(folder), "bpe")
            return {"size": tokenizer.get_vocab_size()}

        self.run.stage("vocabulary", work)

    def train_base(self) -> dict[str, Any]:
        """The model that every system starts from: everything, safe and unsafe, as an unfiltered log."""
        return self.train(self.base, self.base_options)

    @property
    def base_options(self) -> dict[str, Any]:
        """The agent's options where training begins with random weights."""
        return {k: v for k, v in self.recipe.base.items() if k not in ("steps", "control", "view")}

    @property
    def base(self) -> System:
        """The base model as a system."""
        return System(
            BASE, BASE, BASE_AGENT, None, self.recipe.base.get("view", "plain"), steps=self.recipe.base["steps"]
        )

    def train(self, system: System, options: Mapping[str, Any]) -> dict[str, Any]:
        """Train a system, or what is left of it."""

        def work(folder: Path) -> dict[str, Any]:
            tasks, more = self._learned(system.view)
            common = self._model_options(tasks)
            if system.start is not None:
                start = self.folder / system.start / "model"
                if not start.is_file():  # ParlAI would begin with random weights
                    raise FileNotFoundError(start)
                more["init_model"] = str(start)
            if "reference_cache" in options_of(system.agent):
                more["reference_cache"] = str(self.folder / "reference")  # systems share what they begin from
            if system.own is not None:
                tasks["safety:file"] = system.weight
                more["safety_file"] = str(system.own)
            train(
                system.name,
                model_file=folder / "model",
                max_train_steps=system.steps,
                seed=self.seed,
                model=system.agent,
                task=",".join(tasks),
                multitask_weights=list(tasks.values()) if len(tasks) > 1 else [1],
                **{**common, **options, **(system.options or {}), **more},
            )
            return {"steps": system.steps, **_last_report(folder / "model")}

        return self.run.stage(system.key, work, {**self.described(system), "training": dict(options)})

    def _learned(self, view: str) -> tuple[dict[str, float], dict[str, Any]]:
        """The tasks of a view with their weights, and the options that it needs beside them."""
        if view == ALONE:
            return {}, {}
        if view == TOXIC:
            return dict(self.source.tasks("reply")), {"mutators": "safety_toxic_token"}
        return dict(self.source.tasks(view)), {}

    def described(self, system: System) -> dict[str, Any]:
        """A system as plain values that do not depend on where the run folder is."""

        def relative(value: Any) -> Any:
            return str(value).replace(f"{self.folder}/", "") if isinstance(value, (str, Path)) else value

        options = {key: relative(value) for key, value in (system.options or {}).items()}
        told = {**asdict(system), "own": relative(system.own), "options": options}
        return {key: value for key, value in told.items() if key != "decoding" or value}

    def _model_options(self, tasks: Collection[str]) -> dict[str, Any]:
        vocabulary = self.folder / "vocabulary"
        learnt: dict[str, Any] = {
            "dict_tokenizer": "bytelevelbpe",
            "bpe_vocab": str(vocabulary / "bpe-vocab.json"),
            "bpe_merge": str(vocabulary / "bpe-merges.txt"),
            "dict_maxexs": 0,  # the vocabulary is learnt already, and ParlAI would read all data to count its words
        }
        return {
            **({} if self.recipe.vocabulary is None else learnt),
            "skip_generation": True,
            **self.recipe.model,
            **self.recipe.optimisation,
            **(self.source.options_of(tasks) if tasks else {}),
            **({"safety_part": self.part} if tasks and self.part != "all" else {}),
        }

    def agent(self, system: System, **decoding: Any) -> Any:
        """A system made ready to speak; what it says of decoding itself goes before what is given."""
        decoding = {**decoding, **(system.decoding or {}), "loglevel": "error"}
        model = str(self.folder / (system.start or BASE if system.decodes else system.key) / "model")
        if not decodes(system.agent):
            return load_agent(model, **decoding)
        options = {**(system.options or {}), **decoding, "model": system.agent, option_of_model(system.agent): model}
        return agent_from(Opt({**options, "override": options}))

    # --- own replies ----------------------------------------------------------------------------------------------

    def own_replies(self, system: System, stage: str, settings: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Algorithm 2 of arXiv:2211.05826: answer the original training contexts, and have the answers labelled.

        The stage's folder receives `generated.jsonl` (every reply with its verdict), `labelled.jsonl` (as many safe as
        unsafe replies) and `pairs.jsonl` (a safe and an unsafe reply to one context).

        Args:
            system: whose replies.
            stage: name of the stage.
            settings: `contexts`, `samples` a context, `decoding`.
            number: of the round, for the provenance of each row.
        """

        def work(folder: Path) -> dict[str, Any]:
            contexts = spread(distinct_contexts(self.source.adversarial("train")), settings["contexts"])
            said = self._samples(system, contexts, folder, settings["samples"], settings["decoding"])
            labeller = self.judge("labeller")
            # A beam may find fewer replies than it is asked for.
            repeated = [context for context, texts in zip(contexts, said, strict=True) for _ in texts]
            flat = [text for texts in said for text in texts]
            verdicts, threshold = score(labeller, flat, repeated), labeller.threshold
            provenance = {"generator": system.name, "judge": "labeller", "seed": self.seed, "round": number}
            chosen = balanced(flat, verdicts, threshold, random.Random(self.seed))
            rows = (
                {
                    "context": repeated[i],
                    "reply": flat[i],
                    "classifier_label": "neg" if is_unsafe(verdicts[i], threshold) else "pos",
                    "toxicity": verdicts[i].p_unsafe,
                    "speaker": "bot",
                    "provenance": provenance,
                }
                for i in chosen
            )
            kept = write_jsonl(folder / "labelled.jsonl", rows)
            paired = pairs(contexts, said, verdicts, threshold, random.Random(self.seed))
            pair_count = write_jsonl(
                folder / "pairs.jsonl",
                (
                    {"context": contexts[i], "chosen": good, "rejected": bad, "provenance": provenance}
                    for i, good, bad in paired
                ),
            )
            return {
                "generated": len(flat),
                "unsafe": sum(bool(is_unsafe(v, threshold)) for v in verdicts),
                "unscored": sum(v.p_unsafe is None for v in verdicts),
                "kept": kept,
                "pairs": pair_count,
            }

        return self.run.stage(stage, work, {"of": system.key, **settings})

    def _samples(
        self, system: System, contexts: Sequence[Sequence[str]], folder: Path, samples: int, decoding: dict[str, Any]
    ) -> list[Answers]:
        """Several replies to each context, kept batch by batch; `generated.jsonl` holds them at the end."""
        path = folder / "generated.jsonl"
        if path.is_file():
            return [row["replies"] for row in read_jsonl(path)]
        seed = self._seed_of(f"{system.key} {folder.name} own")
        with quiet(), Journal(path.with_suffix(".part.jsonl")) as journal:
            known = {i: texts for i, texts in journal.rows}
            before = frozenset(known)
            agent = self.agent(system, **decoding)
            with progress(f"{system.name}: own replies", len(contexts), len(known)) as advance:
                for i, texts, _ in sample_replies(
                    agent, contexts, samples=samples, seed=seed, known=before, progress=advance
                ):
                    known[i] = [text if text.strip() else None for text in texts]
                    journal.append([[i, known[i]]])
        said = [known[i] for i in range(len(contexts))]
        write_jsonl(path, ({"context": list(c), "replies": texts} for c, texts in zip(contexts, said, strict=True)))
        journal.path.unlink()
        return said

    def answers(
        self, system: System, contexts: Sequence[Sequence[str]], path: Path, decoding: Mapping[str, Any]
    ) -> Answers:
        """The replies of a system, kept batch by batch, so that an interrupted run repeats none of them."""
        if path.is_file():
            return [row["reply"] for row in read_jsonl(path)]
        seed = self._seed_of(f"{system.key} {path.stem}")
        with quiet(), Journal(path.with_suffix(".part.jsonl")) as journal:
            known = dict(journal.rows)
            before = frozenset(known)
            agent = self.agent(system, **decoding)
            with progress(f"{system.name}: {path.stem} replies", len(contexts), len(known)) as advance:
                for i, text, _ in replies(agent, contexts, seed=seed, known=before, progress=advance):
                    known[i] = text
                    journal.append([[i, text]])
        said = [known[i] for i in range(len(contexts))]
        write_jsonl(path, ({"context": list(c), "reply": text} for c, text in zip(contexts, said, strict=True)))
        journal.path.unlink()
        return said

    def _seed_of(self, what: str) -> int:
        return zlib.crc32(f"{self.seed} {what}".encode())

    # --- evaluation -----------------------------------------------------------------------------------------------

    def contexts(self, split: str, adversarial: int, ordinary: int) -> tuple[list[list[str]], list[Row]]:
        """At most so many adversarial contexts and ordinary rows of a split, spread over it."""
        hostile = spread(distinct_contexts(self.source.adversarial(split)), adversarial)
        return hostile, spread(list(self.source.ordinary(split)), ordinary)

    @functools.cached_property
    def _test_contexts(self) -> tuple[list[list[str]], list[Row]]:
        settings = self.recipe.evaluation
        return self.contexts("test", settings["adversarial"], settings["ordinary"])

    @functools.cached_property
    def _judges(self) -> dict[str, Judge]:
        return {role: self.judge(role) for role in ("grader", "labeller")}

    def evaluate(self, system: System, training_seconds: float) -> SystemResult:
        """Measure a system on the test split; the perplexity of a way of decoding is not measured."""
        settings = self.recipe.evaluation
        hostile, ordinary = self._test_contexts

        def measure(folder: Path) -> dict[str, Any]:
            decoding = self.recipe.decoding
            said = self.answers(system, hostile, folder / "adversarial.jsonl", decoding)
            chat = self.answers(system, [row.context for row in ordinary], folder / "ordinary.jsonl", decoding)
            perplexity = None
            if not system.decodes:
                with quiet():
                    options = {**self.source.task_options, "chat_max_dialogues": settings["perplexity_dialogues"]}
                    perplexity = likelihood(self.agent(system), self.source.ordinary_task, **options).perplexity
            judged = {role: score(judge, said, hostile) for role, judge in self._judges.items()}
            f1s = [f1(text or "", [row.reply]) for text, row in zip(chat, ordinary, strict=True)]
            every = [text for text in (*said, *chat) if text]
            talk = self._talk(said, hostile, chat, [row.context for row in ordinary]) if self._talk_scores else {}
            return {
                **talk,
                "verdicts": {role: [list(v) for v in verdicts] for role, verdicts in judged.items()},
                "perplexity": perplexity,
                "f1": sum(f1s) / len(f1s),
                "distinct_2": distinct_n(every, 2),
                "canned_rate": canned_rate(every).rate,
                "loop_rate": loop_rate(every),
            }

        result = self.run.stage(f"evaluation/{system.key}", measure, self.described(system))
        said = [row["reply"] for row in read_jsonl(self.folder / "evaluation" / system.key / "adversarial.jsonl")]
        verdicts = {role: [Verdict(*v) for v in listed] for role, listed in result["verdicts"].items()}
        graded, labelled = (
            rate([is_unsafe(v, self._judges[role].threshold) for v in verdicts[role]])
            for role in ("grader", "labeller")
        )
        return SystemResult(
            name=system.name,
            unsafe_rate=graded.value,
            unsafe_interval=graded.interval,
            n=graded.n,
            unscored=graded.unscored,
            perplexity=result["perplexity"],
            f1=result["f1"],
            distinct_2=result["distinct_2"],
            canned_rate=result["canned_rate"],
            seconds=training_seconds + result["seconds"],
            examples=_shown(hostile, said, verdicts["grader"], self._judges["grader"].threshold),
            extra={
                "unsafe_rate_by_labeller": labelled.value,
                "unsafe_interval_by_labeller": labelled.interval,
                "loop_rate": result["loop_rate"],
                **{name: result[name] for name in TALK_SCORES if name in result},
                **{name: value for name, value in self._learning(system).items() if name in LEARNING},
            },
        )

    def _learning(self, system: System) -> dict[str, Any]:
        """What the last report of a system's training said."""
        done = self.folder / system.key / "done.json"
        return self.run.result(system.key) if done.is_file() else {}

    def _talk(
        self, hostile: Answers, contexts: Sequence[Sequence[str]], chat: Answers, talk: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        """Evasiveness and coherence of replies to adversarial contexts and to ordinary ones, and listed words."""
        evasive, coherence = evasive_detector(), self._coherence
        listed = WordListJudge(read_terms(None))
        found: dict[str, Any] = {
            "word_list": rate([None if text is None else listed.matches(text) for text in hostile]).value
        }
        for kind, said, answered in (("", hostile, contexts), ("ordinary_", chat, talk)):
            flags = [None if p is None else p >= evasive.threshold for p in evasive.score(said, answered)]
            share = rate(flags)
            found[f"{kind}evasive"], found[f"{kind}evasive_interval"] = share.value, share.interval
            found[f"{kind}coherence"] = _mean(coherence.score(said, answered))
        return found

    @functools.cached_property
    def _coherence(self) -> CoherenceScorer:
        talk = self._data if self._data is not None and (self._data / ORDINARY_FILE).is_file() else None
        with quiet():
            return coherence_scorer(talk, cache_folder())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _last_report(model: Path) -> dict[str, float]:
    """What ParlAI's training kept of its last report, as far as `LEARNING` names it, and the updates that were made."""
    stats = Path(f"{model}.trainstats")
    if not stats.is_file():
        return {}
    found = json.loads(stats.read_text(encoding="utf-8"))
    last = found["train_reports"][-1] if found.get("train_reports") else {}
    known = {name: float(last[name]) for name in LEARNING if name in last}
    return {**known, "updates": found["train_steps"]}


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


def pairs(
    contexts: Sequence[Sequence[str]],
    said: Sequence[Answers],
    verdicts: Sequence[Verdict],
    threshold: float,
    generator: random.Random,
) -> list[tuple[int, str, str]]:
    """A safe and an unsafe reply to each context that has both, drawn at random; each safe text at most twice in all.

    Args:
        contexts: the contexts.
        said: the replies to each of them; None where there is none.
        verdicts: one a reply, context by context; unscored ones are in no pair.
        threshold: of the judge.
        generator: draws the pairs.

    Returns:
        (position of the context, safe reply, unsafe reply), in the order of the contexts.
    """
    verdict = iter(verdicts)
    copies: Counter[str] = Counter()
    found = []
    for i in range(len(contexts)):
        kinds: dict[bool | None, list[str]] = {True: [], False: [], None: []}
        for text in said[i]:
            kinds[is_unsafe(next(verdict), threshold)].append(text or "")
        safe = [text for text in kinds[False] if copies[normalise(text)] < COPIES_OF_A_POSITIVE]
        if safe and kinds[True]:
            good, bad = generator.choice(safe), generator.choice(kinds[True])
            copies[normalise(good)] += 1
            found.append((i, good, bad))
    return found


def prefixes(examples: Iterable[Example], generator: random.Random, *, each: int = 2) -> list[Example]:
    """Examples with unfinished replies beside them, for a judge that guides decoding token by token (FUDGE).

    Args:
        examples: labelled examples.
        generator: draws where a reply is cut.
        each: how many prefixes a reply, at random lengths of at least one word; a reply of one word has none.

    Returns:
        Every example, followed by its prefixes with the same label.
    """
    found = []
    for example in examples:
        found.append(example)
        words = example.reply.split()
        if len(words) > 1:
            lengths = (generator.randrange(1, len(words)) for _ in range(each))
            found += [example._replace(reply=" ".join(words[:length])) for length in lengths]
    return found


def summary(report: Report, out: Path) -> str:
    """What the terminal shows at the end."""
    page = out / "report.html"
    outcome = "".join(f"\n{line}" for line in report.data.get("outcome", ()))
    return f"\n{terminal_table(report)}\n{outcome}\nThe report, with replies to read behind a warning: {page}\n"


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

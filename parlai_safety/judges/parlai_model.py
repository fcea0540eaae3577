"""Any classifier trained with ParlAI, as a judge: `parlai:MODEL_FILE`.

The agent is a `TorchClassifierAgent` (transformer/classifier and its children), read from its
model file and the options beside it. ParlAI reports the probability of the class that won; here it is always the
probability of the unsafe class. The columns of `probs` follow the agent's `class_dict` and not its `class_list`: with
`--ref-class` ParlAI moves the reference class to the front of the list only, so the two can differ.

Left out: generators and rankers, and the speaker, of which such a model knows nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from parlai_safety.errors import SafetyError
from parlai_safety.files import sha256
from parlai_safety.judges.verdict import (
    Judge,
    Speaker,
    Verdict,
    check_batch,
    check_threshold,
    fingerprint_of,
    judged,
)
from parlai_safety.message import join_context

CONTEXT_TURNS = 4
UNSAFE_NAMES = frozenset({"notok", "unsafe", "neg", "negative", "bad", "toxic", "offensive", "hate", "hateful"})
_NO_JOINTS = str.maketrans("", "", " _-")


class ParlaiJudge:
    """A ParlAI classifier that scores replies in context.

    The text it reads is the last turns of the context and then the reply, one a line, which is how the classifiers of
    Dinan et al. (2019, arXiv:1908.06083) and Xu et al. (2020, arXiv:2010.07079) were trained. How many turns a model
    saw in training matters: our classifiers say it in their options; others that read single replies should be given
    one.

    Args:
        model_file: the model file, with its options in `model_file.opt`; or a `zoo:` name.
        threshold: a reply with p_unsafe >= threshold is unsafe; strictly between 0 and 1.
        context_turns: turns read, the reply included; 1 = the reply alone, which is at least 1. None = as the model's
            options say (`--context-turns`), or 4.
        batch_size: replies scored at once.
        unsafe_class: the name of the unsafe class; None = told from the names.
        datapath: ParlAI's data folder; None = ParlAI's default.

    Raises:
        SafetyError: the model file or its options are missing, the model is not a classifier, the unsafe class cannot
            be told, or a number is out of range.
    """

    def __init__(
        self,
        model_file: str,
        *,
        threshold: float = 0.5,
        context_turns: int | None = None,
        batch_size: int = 32,
        unsafe_class: str | None = None,
        datapath: str | None = None,
    ) -> None:
        if (context_turns is not None and context_turns < 1) or batch_size < 1:
            raise SafetyError(
                f"context_turns is {context_turns} and batch_size is {batch_size}",
                "The reply itself is one turn, and a batch holds one reply at least",
                "Choose 1 or more for both",
            )
        self.spec, self.threshold = f"parlai:{model_file}", check_threshold(threshold)
        self.batch_size, self.agent = batch_size, _agent(model_file, datapath)
        trained: int | None = self.agent.opt.get("context_turns")
        self.context_turns: int = context_turns or trained or CONTEXT_TURNS
        if trained is not None and self.context_turns > trained:
            raise SafetyError(
                f"context_turns is {context_turns}, and {model_file!r} was trained with --context-turns {trained}",
                "Turns that lie further back are not read by this model",
                f"Choose {trained} or less, or leave it out",
            )
        class_dict: dict[str, int] = self.agent.class_dict
        self.unsafe_class = unsafe_class_of(class_dict, model_file) if unsafe_class is None else unsafe_class
        if self.unsafe_class not in class_dict:
            raise SafetyError(
                f"The unsafe class was said to be {unsafe_class!r}",
                f"The classes of {model_file!r} are {', '.join(map(repr, class_dict))}",
                "Name one of them, or train with --classes that hold it",
            )
        self._column = class_dict[self.unsafe_class]
        # The agent keeps a history between observe() and act(), so two threads must not interleave in it.
        self._one_at_a_time = threading.Lock()

    @cached_property
    def fingerprint(self) -> str:
        """Of the bytes of the model file, its options and its dictionary, the unsafe class and the context turns."""
        model_file, dict_file = Path(self.agent.opt["model_file"]), Path(self.agent.opt.get("dict_file") or "")
        # A subword dictionary lies in several files, whose names begin with that of the dictionary.
        beside = dict_file.parent.iterdir() if dict_file.name and dict_file.parent.is_dir() else []
        endings = {path: path.name.removeprefix(dict_file.name) for path in beside if path.is_file()}
        files = {end: sha256(path) for path, end in endings.items() if end != path.name and end[:1] in ("", ".", "-")}
        return fingerprint_of(
            "parlai",
            2,
            model=sha256(model_file),
            options=sha256(f"{model_file}.opt"),
            dictionary=files,
            unsafe_class=self.unsafe_class,
            context_turns=self.context_turns,
        )

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        """Judge a batch by the replies and the last turns of their contexts; see `Judge.score`."""
        check_batch(replies, contexts, speakers)
        verdicts: list[Verdict] = []
        for start in range(0, len(replies), self.batch_size):
            rows = slice(start, start + self.batch_size)
            verdicts += judged(replies[rows], contexts[rows], speakers[rows], self._probabilities)
        return verdicts

    def class_probabilities(self, replies: Sequence[str], contexts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The probabilities of all classes, in the order of the agent's `class_dict`.

        Args:
            replies: B replies.
            contexts: B lists of turns before the reply, oldest first; the last `context_turns` - 1 are read.

        Returns:
            B lists of C probabilities. Nothing is caught: use `score` where single replies may fail.
        """
        rows: list[list[float]] = []
        for start in range(0, len(replies), self.batch_size):
            rows += self._classes(replies[start : start + self.batch_size], contexts[start : start + self.batch_size])
        return rows

    def _probabilities(self, replies: list[str], contexts: list[list[str]], speakers: list[Speaker]) -> list[float]:
        return [row[self._column] for row in self._classes(replies, contexts)]

    def _classes(self, replies: Sequence[str], contexts: Sequence[Sequence[str]]) -> list[list[float]]:
        from parlai.core.message import Message

        observations = []
        with self._one_at_a_time:
            for reply, context in zip(replies, contexts, strict=True):
                text = join_context([*last_turns(context, self.context_turns - 1), reply])
                # One agent reads every text: an episode of one turn, ended at once, leaves no history to the next.
                observations.append(self.agent.observe(Message({"text": text, "episode_done": True})))
                self.agent.self_observe(Message({"text": ""}))
            acts = self.agent.batch_act(observations)
        return [[float(p) for p in act["probs"]] for act in acts]


def last_turns(context: Sequence[str], count: int) -> list[str]:
    """The last `count` turns of a context, oldest first; none where the count is 0."""
    return list(context[-count:]) if count > 0 else []


def unsafe_class_of(
    class_names: Sequence[str] | dict[str, int],
    model_file: str,
    *,
    known: frozenset[str] = UNSAFE_NAMES,
    numbered: bool = True,
    instead: str = "Train with --classes __ok__ __notok__, or make ParlaiJudge(..., unsafe_class=...) in Python",
) -> str:
    """Tell which class of a classifier means unsafe.

    A name counts after its case, spaces, underscores and hyphens are taken away: `__notok__`, `not_ok`, `unsafe`,
    `neg`, `negative`, `bad`, `toxic`, `offensive`, `hate`, `hateful`; and `1` where the classes are just `0` and `1`.

    Args:
        class_names: the classes.
        model_file: named in the error.
        known: the names that mean unsafe, in lower case and without spaces, underscores and hyphens.
        numbered: whether `1` of `0` and `1` means unsafe.
        instead: the last sentence of the error.

    Returns:
        The one class that means unsafe.

    Raises:
        SafetyError: none of the names, or more than one, means unsafe.
    """
    names = list(class_names)
    found = [name for name in names if name.lower().translate(_NO_JOINTS) in known]
    if numbered and sorted(names) == ["0", "1"]:
        found = ["1"]
    if len(found) != 1:
        raise SafetyError(
            f"The classes of {model_file!r} are {', '.join(map(repr, names))}",
            f"{'More than one' if found else 'None'} of them is known to mean unsafe, and a guess could be upside down",
            instead,
        )
    return found[0]


def load_spec(argument: str | None, threshold: float | None, datapath: str | None) -> ParlaiJudge:
    """Load `parlai:MODEL_FILE`; see `parlai_safety.judges.spec`."""
    return ParlaiJudge(argument or "", threshold=0.5 if threshold is None else threshold, datapath=datapath)


def load_zoo_spec(argument: str | None, threshold: float | None, datapath: str | None) -> Judge:
    """Load `zoo:NAME`: a judge of our registry as `zoo:safety/NAME[/FILE]`, or any classifier of ParlAI's zoo.

    A file that ends in .npz is a linear judge, anything else a ParlAI model; without a FILE the entry's main
    file is meant. A ParlAI model reads as many turns as its entry says.

    Raises:
        SafetyError: our registry does not list the name, the model was not built yet, a download fails, or the file is
            no judge.
    """
    name = argument or ""
    if not name.startswith("safety/"):
        return load_spec(f"zoo:{name}", threshold, datapath)
    from parlai_safety import zoo

    _, model, *rest = name.split("/")
    found = zoo.entry(model)
    path = zoo.download(model, datapath or default_datapath()).joinpath(*rest or [found.model])
    judge: Any
    if path.suffix == ".npz":
        from parlai_safety.judges.linear import LinearJudge

        judge = LinearJudge.load(path, threshold=threshold)
    else:
        at, turns = 0.5 if threshold is None else threshold, found.context_turns
        judge = ParlaiJudge(str(path), threshold=at, context_turns=turns, datapath=datapath)
    judge.spec, judge.file = f"zoo:{name}", path
    return cast(Judge, judge)


def default_datapath() -> str:
    """Where ParlAI keeps its data unless it is told otherwise."""
    from parlai.core.params import ParlaiParser

    return str(ParlaiParser(True, False).parse_args([])["datapath"])


def _agent(model_file: str, datapath: str | None) -> Any:
    from parlai.core.agents import create_agent_from_model_file
    from parlai.core.build_data import modelzoo_path
    from parlai.core.torch_classifier_agent import TorchClassifierAgent

    overrides = {
        "datatype": "valid",
        "print_scores": True,
        "interactive_mode": False,
        "ignore_labels": True,
        "init_model": None,
    }
    if datapath is None and model_file.startswith(("zoo:", "models:")):
        datapath = default_datapath()
    if datapath is not None:
        overrides["datapath"] = datapath
    path = modelzoo_path(datapath, model_file)
    # ParlAI would start from random weights where the model file is missing, and say nothing.
    for needed in (path, f"{path}.opt"):
        if not Path(needed).is_file():
            raise SafetyError(
                f"There is no file {needed!r}",
                "A ParlAI model is a model file with its options beside it, in a file that ends in .opt",
                "Check the path, or train a classifier with --model-file first",
            )
    agent = create_agent_from_model_file(path, overrides)
    if not isinstance(agent, TorchClassifierAgent):
        raise SafetyError(
            f"The model {model_file!r} is a {type(agent).__name__}",
            "A judge needs the probability of a class, which only a classifier gives",
            "Name a classifier, such as one trained with -m transformer/classifier",
        )
    return agent

"""`-m safety:guard`: any agent behind a judge of what the user says and of what the agent would reply.

The safety layer, or two-stage model, of Xu et al. 2020 ("Recipes for Safety in Open-domain Chatbots",
arXiv:2010.07079): a judge looks at the user's last turn and at the agent's reply, each in its context, and where it
finds one unsafe a canned reply is said instead (`parlai_safety.corpus.canned`). A judge of sensitive topics may look at
both, too. Ours are the next best candidates, which are tried first where there are some, the third kind of canned
reply, and that it fails closed: what a judge cannot score, in time or at all, is not said.

A reply that was refused, and the candidates that nobody judged, are in no field of an act, nor in the agent's history,
which holds what was said. hits@k of a guarded ranker is therefore not reported. Losses and perplexity are the guarded
agent's own. Of a text with several lines the last one is the user's turn, and those before it are its context, as
everywhere in ParlAI. Left out: whatever an agent that has no `batch_act` remembers by itself of a reply that was not
said.
"""

from __future__ import annotations

import itertools
import json
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parlai.core.agents import create_agent, create_agent_from_model_file
from parlai.core.build_data import modelzoo_path
from parlai.core.loader import load_agent_module
from parlai.core.message import Message
from parlai.core.metrics import AverageMetric
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_generator_agent import TorchGeneratorAgent

from parlai_safety.agents.generation import FastGenerationMixin, fast_generation
from parlai_safety.agents.guard.checks import UNSCORED, Checks, Finding, Turn, first
from parlai_safety.agents.rerank.rerank import SEVERAL
from parlai_safety.agents.wrapped import WrappedAgent
from parlai_safety.corpus.canned import KINDS, canned_reply
from parlai_safety.errors import SafetyError
from parlai_safety.judges.spec import load_judge
from parlai_safety.judges.verdict import Judge
from parlai_safety.options import add_options, flag, option

SEEN = "guard_seen"
KEPT = ("id", "episode_done", "metrics")
"""Fields of the guarded agent's act that stay where its reply is not said: none of them holds a text of its own."""
CANDIDATES = ("beam_texts", "beam_texts_token_info", "text_candidates", "sorted_scores", "cand_scores", "token_losses")
"""Fields with replies that were not judged, or with what belongs to them."""
SHORT = {"--judge": "guard_judge", "--topic-judge": "guard_topic_judge"}


@dataclass(frozen=True)
class GuardOptions:
    """The options of the guard."""

    guarded_model: str = option(
        "", "Whom it guards: a model file, a zoo: name, or an agent's name such as repeat_query or safety:endpoint."
    )
    guard_judge: str = option(
        "",
        "Judge of the user's turns and of the replies, as in linear:FILE; --judge is the same, in commands that have "
        "no judge of their own.",
    )
    guard_topic_judge: str = option(
        "", "Judge of sensitive topics, as in topics:FILE; empty = none. --topic-judge is the same, like --judge."
    )
    guard_reply: str = option("safe", "What is said instead of an unsafe reply.", choices=KINDS)
    guard_candidates: int = option(
        0,
        "Replies of the model that are tried before a canned one, the best one included; 0 = the best one only.",
        low=0,
    )
    guard_checks: str = option("both", "Whose turns are judged.", choices=("user", "reply", "both"))
    guard_seed: int = option(0, "Seed of the canned replies.")
    guard_judge_timeout: float = option(
        30.0, "Seconds that a judge may take for what it is asked at once; 0 = no limit.", low=0
    )
    guard_log: str = option("", "JSONL file to which a line a turn is added; empty = none.")
    guard_keep_withheld: bool = option(
        False, "Keep the model's own reply in the act and in the log where another one is said; for research alone."
    )


@dataclass(frozen=True)
class Seen:
    """A conversation as a copy of the guard has seen it when it is asked for a reply.

    Attributes:
        copy: the number of the copy; None of an observation that went through no copy.
        conversation: its number, for the log.
        turns: all of them, oldest first.
        asked: whether the last one is the user's and waits for the reply.
        said: the guard's own replies.
    """

    copy: int | None
    conversation: int
    turns: list[str]
    asked: bool
    said: list[str]


@dataclass
class Reply:
    """One reply of the guarded agent on its way through the guard.

    Attributes:
        candidates: what the agent would say, the best one first.
        seen: the conversation.
        finding: why its own reply may not be said; a trigger of None lets it pass.
        chosen: the index of the candidate that is said, or None for a canned reply.
        tried: how many candidates were judged, or taken unjudged where replies are not checked.
    """

    candidates: list[str]
    seen: Seen
    finding: Finding | None = None
    chosen: int | None = 0
    tried: int = 1


@dataclass
class Shared:
    """What all copies of a guard have in common."""

    checks: Checks
    copies: weakref.WeakValueDictionary[int, GuardAgent] = field(default_factory=weakref.WeakValueDictionary)
    numbers: Any = field(default_factory=itertools.count)
    conversations: Any = field(default_factory=itertools.count)


class GuardAgent(WrappedAgent):
    """A guard around any ParlAI agent.

    Each act with a text has `guard`, a dict:
    `trigger`: None, or what fired: "user", "reply", "user_topic", "reply_topic", or "unscored" where a judge failed;
    `judge`: the specification of the judge that decided;
    `p_unsafe`: its score of what fired, or of the reply where nothing did; None where it has none;
    `topic`: the sensitive topic's name, where there is one;
    `replaced`: whether something else is said than the guarded agent's own reply;
    `candidates`: how many of its replies were tried;
    `withheld`: its own reply where another one is said, with --guard-keep-withheld true alone.

    ParlAI's reports have the shares of replies guard_fired, guard_user, guard_reply, guard_topic, guard_unscored and
    guard_replaced.
    """

    options_class = GuardOptions
    title = "Guard: a judge before and behind any agent"
    model_option = "guarded_model"
    purpose = "guards"

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the guarded agent's own flags, as far as it is known by now, and the guard's."""
        named = (partial_opt or {}).get("guarded_model") or _typed("--guarded-model")
        guarded = _class_of(named, partial_opt or {}) or TorchGeneratorAgent
        if hasattr(guarded, "add_cmdline_args") and not issubclass(guarded, cls):
            guarded.add_cmdline_args(parser, partial_opt)
        add_options(parser, GuardOptions, cls.title)
        for short, name in SHORT.items():
            known = parser._option_string_actions.get(short)
            if known is None or known.dest == name:  # a command's own --judge, which evaluates, stays its own
                parser.add_argument(short, dest=name, type=str, default="", help=f"Short for {flag(name)}.")
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        super().__init__(opt, shared)
        if isinstance(self.base, TorchGeneratorAgent) and not isinstance(self.base, FastGenerationMixin):
            fast_generation(self.base)
        self._number: int = next(self.resources.numbers)
        self.resources.copies[self._number] = self
        self._forget()

    def load_base(self) -> Any:
        """The guarded agent.

        Raises:
            SafetyError: none is named, there is none of that name, or it has no candidates where some are wanted.
        """
        named, options = self.settings.guarded_model, self.base_options()
        if not named:
            raise SafetyError(
                "The command came without --guarded-model",
                "A guard says nothing of its own: it judges what another agent would say",
                "Add --guarded-model with a model file, a zoo: name or the name of an agent",
            )
        path = modelzoo_path(options.get("datapath"), named)
        if Path(f"{path}.opt").is_file():
            agent = create_agent_from_model_file(path, options)
        else:
            kind = _class_of(named, options)
            if kind is None or issubclass(kind, GuardAgent):
                raise SafetyError(
                    f"--guarded-model got {named!r}",
                    "That is no model file with its options beside it in a file that ends in .opt, and not the name of "
                    "an agent that can be guarded",
                    "Give for example runs/base/model, zoo:NAME or repeat_query",
                )
            agent = create_agent(
                Opt({**self.opt, **options, "model": named, "model_file": "", "override": dict(options)})
            )
        inference = agent.opt.get("inference", "greedy") if isinstance(agent, TorchGeneratorAgent) else SEVERAL[0]
        if self.settings.guard_candidates > 1 and inference not in SEVERAL:
            raise SafetyError(
                f"--guard-candidates is {self.settings.guard_candidates}, and the guarded model decodes by {inference}",
                "That gives one reply a context, and there is no next best one",
                "Add --inference beam, --inference nucleus or --inference topk",
            )
        return agent

    def base_options(self) -> dict[str, Any]:
        """As many hypotheses or samples as are tried; a wider beam that was typed stays so."""
        options, wanted = super().base_options(), self.settings.guard_candidates
        return options if wanted <= 1 else {**options, "beam_size": max(wanted, int(options.get("beam_size", 1)))}

    def load_resources(self) -> Shared:
        """The judges, and what copies share.

        Raises:
            SafetyError: no judge is named, or one cannot be loaded.
        """
        settings = self.settings
        if not settings.guard_judge:
            raise SafetyError(
                f"{self.name} came without --guard-judge",
                "A guard lets through what its judge finds safe; a command's own --judge evaluates, and is another one",
                "Add for example --guard-judge linear:judges/labeller.npz",
            )
        topics = self._load_judge(settings.guard_topic_judge) if settings.guard_topic_judge else None
        seconds, tell = settings.guard_judge_timeout, settings.guard_keep_withheld
        return Shared(Checks(self._load_judge(settings.guard_judge), topics, seconds=seconds, tell=tell))

    def _load_judge(self, spec: str) -> Judge:
        try:
            return load_judge(spec, datapath=self.opt.get("datapath"))
        except SafetyError:
            raise
        except Exception as error:
            raise SafetyError(
                f"The guard's judge {spec!r} cannot be loaded ({type(error).__name__}: {str(error)[:200]})",
                "Without its judge a guard could only refuse everything",
                "Check what stands behind the colon, for example with parlai safety_judge --judge and a text",
            ) from error

    # --- ParlAI's agent ---------------------------------------------------------------------------------------------

    def observe(self, observation: Any) -> Any:
        """Let the guarded agent observe, and remember the turns for the judges.

        Raises:
            SafetyError: the observation is one to train on.
        """
        if "labels" in observation:
            raise self._no_training()
        # Copies: what the guard adds is nothing for the other side of the conversation, whose act this may be.
        message = Message(observation)
        observed = self.base.observe(message)
        lines = _lines(message)
        self._turns += lines
        self.observation = Message(message if observed is None else observed)
        seen = Seen(self._number, self._conversation, list(self._turns), bool(lines), list(self._said))
        self.observation.force_set(SEEN, seen)
        return self.observation

    def batch_act(self, observations: Sequence[Mapping[str, Any]]) -> list[Message]:
        """The guarded agent's acts, with what may be said.

        Args:
            observations: as `observe` of copies of this agent returned them.

        Returns:
            Acts with `text` and `guard`; an act of the guarded agent without a text stays without one.
        """
        acts = self._base_acts(observations)
        replies: dict[int, Reply] = {}
        for row, (act, observation) in enumerate(zip(acts, observations, strict=True)):
            if (observation or {}).get("batch_padding"):
                act.pop("text", None)  # an agent that repeats what it hears answers to padding, too
            if act.get("text") is not None:
                replies[row] = Reply(_candidates(act), _seen(observation))
        self._check(list(replies.values()))
        return [self._guarded(act, replies.get(row)) for row, act in enumerate(acts)]

    def self_observe(self, self_message: Mapping[str, Any] | None) -> None:
        """Remember what was said, or the label in its place as the guarded agent does; let that agent do so too."""
        observed, said = self.observation or {}, (self_message or {}).get("text")
        if hasattr(self.base, "self_observe"):
            super().self_observe(self_message)
        if observed.get("episode_done"):
            self._forget()
            return
        if said:
            self._said.append(said)
        labels = observed.get("eval_labels") if self.base.opt.get("use_reply", "label") == "label" else None
        self._turns += _lines({"text": labels[0] if labels else said})

    def reset(self) -> None:
        """Forget the conversation."""
        super().reset()
        self._forget()

    # --- the guard --------------------------------------------------------------------------------------------------

    def _base_acts(self, observations: Sequence[Mapping[str, Any]]) -> list[Any]:
        """What the guarded agent would say."""
        if hasattr(self.base, "batch_act"):
            return list(self.base.batch_act(observations))
        acts = []
        for observation in observations:
            base = self.resources.copies.get(_seen(observation).copy, self).base
            acts.append(base.act())
        return acts

    def _check(self, replies: Sequence[Reply]) -> None:
        """Decide for each reply what is said; at most two calls of each judge."""
        checks, checked = self.resources.checks, self.settings.guard_checks
        asked: list[tuple[Reply, Turn]] = []
        for reply in replies:
            turns = reply.seen.turns
            if checked in ("reply", "both"):
                asked.append((reply, Turn("reply", reply.candidates[0], turns)))
            if checked in ("user", "both") and reply.seen.asked:
                asked.append((reply, Turn("user", turns[-1], turns[:-1])))
        found: dict[int, dict[str, Finding]] = {}
        for (reply, turn), finding in zip(asked, checks.find([turn for _, turn in asked]), strict=True):
            found.setdefault(id(reply), {})[turn.side] = finding
        refused = []
        for reply in replies:
            sides = found.get(id(reply), {})
            reply.finding = first(sides.values()) if sides else None
            if reply.finding is not None and reply.finding.trigger is not None:
                reply.chosen = None
                if "user" not in sides or sides["user"].trigger is None:
                    refused.append(reply)
        self._try_others(refused)

    def _try_others(self, refused: Sequence[Reply]) -> None:
        """Choose the first safe one of the other candidates, for replies of which the user's turn was safe."""
        others = [
            (reply, index, Turn("reply", text, reply.seen.turns))
            for reply in refused
            for index, text in enumerate(reply.candidates[: max(1, self.settings.guard_candidates)])
            if index > 0
        ]
        findings = self.resources.checks.find([turn for _, _, turn in others])
        for (reply, index, _), finding in zip(others, findings, strict=True):
            reply.tried = max(reply.tried, index + 1)
            if finding.trigger is None and reply.chosen is None:
                reply.chosen = index

    def _guarded(self, act: Mapping[str, Any], reply: Reply | None) -> Message:
        """The act that is said."""
        if reply is None:
            told = Message({key: value for key, value in act.items() if key not in CANDIDATES})
            told.force_set("id", self.getID())
            return told
        own = reply.chosen == 0
        said = Message({key: act[key] for key in act if (key not in CANDIDATES if own else key in KEPT)})
        said.force_set("id", self.getID())
        if reply.chosen is None:
            seen = reply.seen
            text = canned_reply(
                self.settings.guard_reply, seen.turns, seed=self.settings.guard_seed, avoid=[*seen.turns, *seen.said]
            )
        else:
            text = reply.candidates[reply.chosen]
        said.force_set("text", text)
        record = self._record(reply)
        said.force_set("guard", record)
        said.force_set("metrics", {**(act.get("metrics") or {}), **_rates(record)})
        self._log(reply, text, record)
        return said

    def _record(self, reply: Reply) -> dict[str, Any]:
        finding = reply.finding or Finding(None, self.resources.checks.judges[""].spec, None)
        replaced = reply.chosen != 0
        record = {**finding._asdict(), "replaced": replaced, "candidates": reply.tried}
        if replaced and self.settings.guard_keep_withheld:
            record["withheld"] = reply.candidates[0]
        return record

    def _log(self, reply: Reply, text: str, record: Mapping[str, Any]) -> None:
        if self.settings.guard_log:
            seen = reply.seen
            row = {"conversation": seen.conversation, "turn": len(seen.turns), "said": text, **record}
            path = Path(self.settings.guard_log)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")

    def _forget(self) -> None:
        self._turns: list[str] = []
        self._said: list[str] = []
        self._conversation: int = next(self.resources.conversations)


def _lines(message: Mapping[str, Any]) -> list[str]:
    """The turns that a message's text holds, without blank ones."""
    return [line.strip() for line in str(message.get("text") or "").split("\n") if line.strip()]


def _seen(observation: Mapping[str, Any] | None) -> Seen:
    """What a copy noted in its observation; of one that went through no copy, what it says itself."""
    observation = observation or {}
    seen = observation.get(SEEN)
    if isinstance(seen, Seen):
        return seen
    turns = _lines(observation)
    return Seen(None, -1, turns, bool(turns), [])


def _candidates(act: Mapping[str, Any]) -> list[str]:
    """The reply of an act and what the agent might have said instead, in its own order and without repetition."""
    beams = [beam[0] for beam in act.get("beam_texts") or []]
    ranked = list(act.get("text_candidates") or [])
    return list(dict.fromkeys([str(act["text"]), *(text for text in beams + ranked if isinstance(text, str))]))


def _rates(record: Mapping[str, Any]) -> dict[str, AverageMetric]:
    """The reply's share in ParlAI's metrics."""
    trigger = record["trigger"]
    held = {
        "fired": trigger is not None,
        "user": trigger == "user",
        "reply": trigger == "reply",
        "topic": trigger in ("user_topic", "reply_topic"),
        "unscored": trigger == UNSCORED,
        "replaced": record["replaced"],
    }
    return {f"guard_{name}": AverageMetric(int(value)) for name, value in held.items()}


def _typed(flag: str) -> str:
    """What was typed after a flag in the command line; empty where it is not there."""
    words = [word.partition("=") for word in sys.argv[1:]]
    for (name, equals, value), (following, *_) in itertools.pairwise([*words, ("", "", "")]):
        if name.replace("_", "-") == flag:
            return value if equals else following
    return ""


def _class_of(named: str, opt: Mapping[str, Any]) -> type[Any] | None:
    """The class of an agent by a model file or by its name; None where there is none."""
    if not named:
        return None
    try:
        options = Path(f"{modelzoo_path(opt.get('datapath'), named)}.opt")
        name = json.loads(options.read_text(encoding="utf-8"))["model"] if options.is_file() else named
        found = load_agent_module(name)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return found if isinstance(found, type) else None

"""What the decoding-time methods share: a trained model, left as it is, whose replies are guided while it decodes.

A guided agent wraps any ParlAI generator that is loaded from `--base-model`. Observing, history, losses and perplexity
are the base model's; what is touched is how replies are found, by processors of the next token's scores
(`parlai_safety.modeling.guidance`) and by a choice among whole replies. Nothing here is trained. ParlAI's metric
`gen_n_toks` counts the tokens of the base model's first reply, whichever is said.

Each act carries `guidance`, a dict of what was done for it; the methods say what is in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parlai.core.agents import create_agent_from_model_file
from parlai.core.build_data import modelzoo_path
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_generator_agent import TorchGeneratorAgent

from parlai_safety.agents.control import AskedOptions, ControlMixin
from parlai_safety.agents.generation import fast_generation, why_not
from parlai_safety.agents.wrapped import WrappedAgent
from parlai_safety.errors import SafetyError
from parlai_safety.judges.spec import load_judge
from parlai_safety.judges.verdict import Judge, Verdict, safe_score
from parlai_safety.modeling.guidance import FudgeProcessor
from parlai_safety.options import add_options, flag, option, options_from

CONTEXT = "guidance_context"


@dataclass(frozen=True)
class GuidedOptions:
    """What every guided agent is told."""

    base_model: str = option("", "Model file of the generator that is guided, or its zoo: name.")


@dataclass(frozen=True)
class JudgedOptions(GuidedOptions):
    """What an agent that asks a judge is told."""

    guidance_judge: str = option(
        "", "Judge that guides, as in linear:FILE; another one than the judge that evaluates the replies."
    )


class GuidedAgent(WrappedAgent):
    """A generator whose replies are guided; a method overrides `processors`, `choose` or both.

    The base model decodes with our sampler, since ParlAI's own search has no place for processors.
    """

    purpose = "guides"

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add ParlAI's flags of generation, which go to the base model where they are given, and the method's own."""
        TorchGeneratorAgent.add_cmdline_args(parser, partial_opt=partial_opt)
        add_options(parser, cls.options_class, cls.title)
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        super().__init__(opt, shared)
        self._contexts: list[list[str]] = []
        self._guided: list[Guided] = []
        self._rows: list[int] = []
        self._guide_base()

    def load_base(self) -> Any:
        """The generator of --base-model; see `load_generator` and `check_base` for what is refused."""
        self.base = load_generator(self.settings.base_model, "--base-model", self.base_options())
        self.check_base()
        return self.base

    # --- what a method says ---------------------------------------------------------------------------------------

    def base_options(self) -> dict[str, Any]:
        """ParlAI options with which the base model is loaded: what the user typed, and what inference needs."""
        options = super().base_options()
        if options.get("generation") == "parlai":
            raise SafetyError(
                f"{type(self).__name__} came with --generation parlai",
                "ParlAI's own search has no place for what guides a reply",
                "Leave --generation out: the base model decodes with the batched sampler",
            )
        return options

    def check_base(self) -> None:
        """Refuse a base model that the method cannot guide, with a SafetyError."""

    def processors(self, batch: Any, contexts: list[list[str]], max_length: int) -> list[Any]:
        """Processors of the next token's scores for one batch.

        Args:
            batch: ParlAI's batch.
            contexts: turns of each row's context, oldest first.
            max_length: tokens a reply may have.
        """
        return []

    def choose(self, contexts: list[list[str]], candidates: list[list[str]], guided: list[Guided]) -> list[int]:
        """Which of its candidates each row says; the base model's own order is best first.

        Args:
            contexts: turns of each row's context, oldest first.
            candidates: at least one a row.
            guided: a record for each row, to be filled.
        """
        return [0] * len(contexts)

    # --- ParlAI's agent ---------------------------------------------------------------------------------------------

    def observe(self, observation: Any) -> Any:
        """Let the base agent observe, and note the conversation so far for the judge.

        Raises:
            SafetyError: the observation is one to train on.
        """
        if "labels" in observation:
            raise self._no_training()
        self.observation = self.base.observe(observation)
        turns = [line for text in self.base.history.history_raw_strings for line in str(text).split("\n")]
        self.observation.force_set(CONTEXT, [line for line in turns if line.strip()])
        return self.observation

    def batch_act(self, observations: Sequence[Mapping[str, Any]]) -> list[Message]:
        """The base agent's acts with guided replies.

        Returns:
            Acts; `guidance` says what was done. A reply that is withheld has no `text`, but an `error`.
        """
        self._contexts = [list(observation.get(CONTEXT) or []) for observation in observations]
        self._rows, self._guided = [], []
        acts: list[Message] = self.base.batch_act(observations)
        for act in acts:
            act.force_set("id", self.getID())
        for row, guided in zip(self._rows, self._guided, strict=True):
            acts[row]["guidance"] = guided.record
            if guided.withheld:
                for field in ("text", "beam_texts"):
                    acts[row].pop(field, None)
                acts[row]["error"] = guided.withheld
        return acts

    # --- guidance ---------------------------------------------------------------------------------------------------

    def _guide_base(self) -> None:
        """Put the guidance into this copy's own base agent."""
        fast_generation(self.base)
        if type(self).processors is not GuidedAgent.processors:
            reason = why_not(self.base)
            if reason is not None:
                raise SafetyError(
                    f"The base model would decode with ParlAI's own search, for {reason}",
                    f"{self.name} changes the scores of each next token, and that search has no place for it",
                    "Decode with --inference greedy, beam, topk or nucleus, and a base model that our sampler covers",
                )
            self.base.logits_processors = self._processors
        self._base_step = self.base.eval_step
        self.base.eval_step = self._eval_step

    def _processors(self, batch: Any) -> list[Any]:
        contexts = [self._contexts[row] for row in self._rows]
        # ParlAI's own limit for a reply, as `TorchGeneratorAgent.eval_step` has it.
        return self.processors(batch, contexts, self.base.label_truncate or 256)

    def _eval_step(self, batch: Any) -> Any:
        """The base agent's step, with another of its hypotheses or samples said where `choose` prefers it."""
        self._rows = [int(row) for row in batch.valid_indices] if batch.valid_indices is not None else []
        self._guided = [Guided() for _ in self._rows]
        output = self._base_step(batch)
        if output is None or output.text is None:
            self._rows, self._guided = [], []
            return output
        candidates = [[text for text, _ in some] for some in output.beam_texts]
        chosen = self.choose([self._contexts[row] for row in self._rows], candidates, self._guided)
        output.text = [some[index] for some, index in zip(candidates, chosen, strict=True)]
        return output


@dataclass
class Guided:
    """What was done for one reply.

    Attributes:
        record: for the act's field `guidance`.
        withheld: why the reply must not be said, in a few words; None where it may.
    """

    record: dict[str, Any] = field(default_factory=dict)
    withheld: str | None = None


def count_partial(processor: FudgeProcessor, guided: Sequence[Guided]) -> None:
    """Write to the rows' records how many partial replies were `judged`, and `unscored_partial` of them."""
    for row, one in enumerate(guided):
        one.record |= {"judged": processor.judged[row], "unscored_partial": processor.unscored[row]}


class JudgedAgent(GuidedAgent):
    """A guided agent with a judge, of partial or of whole replies."""

    def load_resources(self) -> Judge:
        """The judge.

        Raises:
            SafetyError: none is named, or it cannot be loaded.
        """
        spec = self.settings.guidance_judge
        if not spec:
            raise SafetyError(
                f"{self.name} came without --guidance-judge",
                "It guides the base model by what a judge says of its replies",
                "Add for example --guidance-judge linear:judges/labeller.npz",
            )
        return load_judge(spec, datapath=self.opt.get("datapath"))

    def judge_all(self, replies: Sequence[str], contexts: Sequence[Sequence[str]]) -> list[Verdict]:
        """Verdicts of a bot's replies in their contexts; the same reply in the same context is judged once."""
        pairs = [(reply, tuple(context)) for reply, context in zip(replies, contexts, strict=True)]
        once = list(dict.fromkeys(pairs))
        verdicts = safe_score(
            self.resources, [reply for reply, _ in once], [list(context) for _, context in once], ["bot"] * len(once)
        )
        known = dict(zip(once, verdicts, strict=True))
        return [known[pair] for pair in pairs]

    def p_safe(self, contexts: Sequence[Sequence[str]], replies: Sequence[Sequence[int]]) -> list[float]:
        """P(safe) of partial replies, given as tokens; NaN where the judge has no score."""
        verdicts = self.judge_all([self.base._v2t(reply) for reply in replies], contexts)
        return [math.nan if verdict.p_unsafe is None else 1.0 - verdict.p_unsafe for verdict in verdicts]

    def fudge_processor(self, contexts: list[list[str]], **how: Any) -> FudgeProcessor:
        """A processor that asks the judge; `how` are further arguments of `FudgeProcessor`."""

        def p_safe(rows: Sequence[int], replies: Sequence[Sequence[int]]) -> list[float]:
            return self.p_safe([contexts[row] for row in rows], replies)

        return FudgeProcessor(p_safe, end=self.base.END_IDX, **how)

    def least_unsafe(
        self, contexts: list[list[str]], candidates: list[list[str]], guided: list[Guided], most: int
    ) -> list[int]:
        """Which candidate each row says: the one with the least P(unsafe), the earlier one at a tie.

        A candidate without a score comes after all that have one. Where none has, the first one is said, and the record
        has `p_unsafe` None: nobody has found it safe. The record also tells `candidates` and `unscored`, their numbers.

        Args:
            contexts: turns of each row's context.
            candidates: of each row, the base model's best first.
            guided: the rows' records.
            most: candidates a row that are looked at.
        """
        looked = [some[:most] for some in candidates]
        verdicts = iter(
            self.judge_all(
                [text for some in looked for text in some],
                [context for context, some in zip(contexts, looked, strict=True) for _ in some],
            )
        )
        chosen = []
        for some, row in zip(looked, guided, strict=True):
            scores = [next(verdicts).p_unsafe for _ in some]
            ranks = [math.inf if score is None else score for score in scores]
            chosen.append(ranks.index(min(ranks)))
            row.record |= {
                "candidates": len(scores), "unscored": scores.count(None), "p_unsafe": scores[chosen[-1]]
            }  # fmt: skip
        return chosen


def load_generator(model_file: str, named: str, options: Mapping[str, Any]) -> Any:
    """Load a ParlAI generator for inference.

    Args:
        model_file: its file, or its zoo: name.
        named: the flag that names it.
        options: ParlAI options to load it with.

    Raises:
        SafetyError: the file is missing, its agent is no `TorchGeneratorAgent`, or it has no control token of
            `--control`.
    """
    if not model_file:
        raise SafetyError(
            f"The command came without {named}",
            "A guided agent has no parameters of its own: it guides the replies of a trained generator",
            f"Add {named} with the model file, such as {named} runs/base/model",
        )
    path = Path(modelzoo_path(options.get("datapath"), model_file))
    if not path.is_file() or not Path(f"{path}.opt").is_file():
        raise SafetyError(
            f"{named} {model_file!r} is no model file",
            "A ParlAI model is a file with its options beside it, in a file that ends in .opt",
            f"Check {named}, or train a model first: parlai train_model -mf with that path",
        )
    agent = create_agent_from_model_file(str(path), dict(options))
    if not isinstance(agent, TorchGeneratorAgent):
        raise SafetyError(
            f"{named} {model_file!r} holds a model of the agent {type(agent).__name__}",
            "Only a generator can be guided: an agent that makes its replies token by token",
            f"Give {named} the file of a TorchGeneratorAgent, such as safety:mle or transformer/generator",
        )
    asked = options_from(options, AskedOptions).control
    if asked and not isinstance(agent, ControlMixin):
        raise SafetyError(
            f"--control got {asked}, and {named} {model_file!r} holds a model of the agent {type(agent).__name__}",
            "Only a model that was trained by this package can have control tokens",
            "Leave --control out, or give a model that was trained with --control-tokens",
        )
    return agent


def same_vocabulary(base: Any, other: Any, named: str) -> None:
    """Check that two generators number their tokens alike and read contexts and replies of the same length.

    Raises:
        SafetyError: they do not, so that the scores of one mean nothing to the other.
    """
    ids = ("START_IDX", "END_IDX", "NULL_IDX")
    if base.dict.tok2ind != other.dict.tok2ind or any(getattr(base, name) != getattr(other, name) for name in ids):
        raise SafetyError(
            f"{named} has a dictionary of {len(other.dict)} tokens, not the base model's of {len(base.dict)} tokens",
            "The scores of the models are combined token by token, so token n must be the same in each",
            "Train all of them with one --dict-file, for example each with --init-model of one model",
        )
    for key, shown in (("text_truncate", "contexts"), ("label_truncate", "replies")):
        ours, theirs = getattr(base, key), getattr(other, key)
        if (theirs or math.inf) < (ours or math.inf):
            raise SafetyError(
                f"{named} takes {shown} of at most {theirs} tokens, and the base model of {ours or 'any number'}",
                "It reads what the base model reads, and could not read so much",
                f"Add {flag(key)} {theirs} to the command",
            )

"""What a guard costs: the seconds a reply of a plain model, a baked one and a guarded one, against its judge's own.

Run it with `python tests/benchmarks/guard.py [--repeats 9] [--turns 20] [--model FILE] [--baked FILE]`. Each reply is
one turn of one user, as in a chat: batches of one, greedy, 24 tokens. Without files the models are made here, untrained
and with the end token kept from being said: 256 wide, 2 + 4 layers; the baked one differs from the plain one by its
weights alone, as a baked model does. A round runs every bot on the same turns, one bot after the other; printed are
medians of the rounds' ratios with their range.

The guard asks its judge once a turn, for the user's turn and the reply together. (guarded - plain) / judge alone says
how much of the judge's own time it adds; alone is the bare forward pass of the judge's network on the same texts, or
`score` of the linear judge, which has none. The wish is 1 and a little for what surrounds the pass, tokenising and the
guard itself, which the guard with a judge that says 0 shows alone. It judges nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.scripts.train_model import TrainModel
from parlai.utils import logging

from parlai_safety import plugin
from parlai_safety.agents.guard.checks import Checks
from parlai_safety.evaluation.generate import agent_from, load_agent
from parlai_safety.judges import Judge
from parlai_safety.judges.data import tiny_examples
from parlai_safety.judges.linear import train_linear
from parlai_safety.judges.parlai_model import ParlaiJudge
from parlai_safety.judges.verdict import Verdict, scored

WIDTH, TOKENS = 256, 24


class Content:
    """A judge that has nothing to do and finds everything safe."""

    spec, threshold, fingerprint = "content", 0.5, "0" * 64

    def score(self, replies: Sequence[str], contexts: Any, speakers: Any) -> list[Verdict]:
        return [scored(0.0) for _ in replies]


class Asked:
    """A judge whose verdicts are those of another and whose scores are all 0; it remembers what it was asked."""

    threshold = 0.999

    def __init__(self, judge: Judge) -> None:
        self.judge, self.spec, self.fingerprint = judge, judge.spec, judge.fingerprint
        self.calls: list[tuple[Any, Any, Any]] = []

    def score(self, replies: Any, contexts: Any, speakers: Any) -> list[Verdict]:
        self.calls.append((replies, contexts, speakers))
        verdicts = self.judge.score(replies, contexts, speakers)
        assert all(verdict.p_unsafe is not None for verdict in verdicts)
        return [scored(0.0) for _ in replies]  # an untrained judge must not make the guard say something else


def train(folder: Path, model: str, **options: Any) -> str:
    """A model file after one step."""
    TrainModel.main(
        model=model, model_file=str(folder / "model"), datapath=str(folder / "data"), embedding_size=WIDTH,
        ffn_size=4 * WIDTH, n_heads=4, n_positions=256, batchsize=4, max_train_steps=1, log_every_n_steps=1,
        validation_every_n_epochs=-1, save_after_valid=False, verbose=False, dict_maxexs=1000,
        short_final_eval=True, validation_max_exs=4, **options,
    )  # fmt: skip
    return str(folder / "model")


def generator(folder: Path, seed: int) -> str:
    folder.mkdir()
    torch.manual_seed(seed)
    sizes = {"n_encoder_layers": 2, "n_decoder_layers": 4, "text_truncate": 128, "label_truncate": TOKENS}
    return train(
        folder, "transformer/generator", task="safety:tiny", dict_tokenizer="re", skip_generation=True, **sizes
    )


def classifier(folder: Path) -> str:
    folder.mkdir()
    return train(
        folder, "transformer/classifier", task="safety:tiny:classifier", classes=["__ok__", "__notok__"], n_layers=4
    )


def endless(agent: Any) -> Any:
    """A generator that writes all its tokens."""
    with torch.no_grad():
        agent.model.embeddings.weight[agent.END_IDX] = 0
    return agent


def chat(agent: Any, turns: Sequence[str]) -> None:
    agent.reset()
    for turn in turns:
        agent.reset()
        agent.observe(Message({"text": turn, "episode_done": False}))
        assert agent.act()["text"]


class Took(NamedTuple):
    """Seconds of one run: on the clock, and of this process alone, which other work on the machine disturbs less."""

    wall: float
    cpu: float


def seconds(run: Callable[[], object]) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def guard(model: str, judge: Any, limit: float) -> Any:
    options = {
        "model": "safety:guard", "guarded_model": model, "guard_judge": "wordlist", "guard_judge_timeout": limit,
        "label_truncate": TOKENS,
    }  # fmt: skip
    agent = agent_from(Opt({**options, "override": dict(options)}))
    agent.resources.checks = Checks(judge, seconds=limit)
    endless(agent.base)
    return agent


def forward_of(judge: ParlaiJudge, calls: Sequence[tuple[Any, Any, Any]]) -> Callable[[], None]:
    """The bare forward passes of a neural judge on what it was asked."""
    seen: list[torch.Tensor] = []
    hook = judge.agent.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for call in calls:
        judge.score(*call)
    hook.remove()

    def forward() -> None:
        with torch.no_grad():
            for tokens in seen:
                judge.agent.model(tokens)

    return forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--model", help="model file of the plain model")
    parser.add_argument("--baked", help="model file of the baked model")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    plugin.register()
    logging.disable()
    turns = [example.reply for example in tiny_examples("test")[::97]][: arguments.turns]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain_file = arguments.model or generator(folder / "plain", 1)
        baked_file = arguments.baked or generator(folder / "baked", 2)
        neural = ParlaiJudge(classifier(folder / "judge"))
        linear = train_linear(tiny_examples("valid"), seed=1)
        judges = {"linear": Asked(linear), "transformer": Asked(neural)}
        bots = {
            "plain": endless(load_agent(plain_file, label_truncate=TOKENS)),
            "baked": endless(load_agent(baked_file, label_truncate=TOKENS)),
            "content": guard(plain_file, Content(), 0.0),
            "content, timed": guard(plain_file, Content(), 30.0),
            "linear": guard(plain_file, judges["linear"], 30.0),
            "transformer": guard(plain_file, judges["transformer"], 30.0),
        }
        for bot in bots.values():
            chat(bot, turns)  # a warm-up
        calls = {kind: list(judge.calls) for kind, judge in judges.items()}
        forward = forward_of(neural, calls["transformer"])

        def score() -> None:
            for call in calls["linear"]:
                linear.score(*call)

        rounds = []
        for _ in range(arguments.repeats):
            took = {kind: seconds(lambda bot=bot: chat(bot, turns)) for kind, bot in bots.items()}
            rounds.append({**took, "linear alone": seconds(score), "transformer alone": seconds(forward)})
    count = len(turns)
    print(f"{count} replies a round, {arguments.repeats} rounds, {os.environ['OMP_NUM_THREADS']} thread(s)")
    for clock in Took._fields:
        show(clock, [{kind: getattr(took, clock) / count for kind, took in one.items()} for one in rounds])


def show(clock: str, rounds: Sequence[dict[str, float]]) -> None:
    """Print the figures of one clock; each round holds the seconds a reply."""
    print(f"{clock}:")
    for kind in rounds[0]:
        print(f"  {kind:>18}: {spread([1000 * one[kind] for one in rounds])} ms a reply")
    print(f"  baked / plain: {spread([one['baked'] / one['plain'] for one in rounds], '.3f')}")
    for kind in ("content", "content, timed", "linear", "transformer"):
        print(f"  guarded ({kind}) / plain: {spread([one[kind] / one['plain'] for one in rounds], '.3f')}")
    for kind in ("linear", "transformer"):
        added = [(one[kind] - one["plain"]) / one[f"{kind} alone"] for one in rounds]
        print(f"  (guarded - plain) / judge alone, {kind}: {spread(added)}")


if __name__ == "__main__":
    main()

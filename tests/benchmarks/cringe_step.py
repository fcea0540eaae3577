"""What a training step of `safety:cringe` costs, against a straightforward implementation of the published algorithm.

Run it with `python tests/benchmarks/cringe_step.py [--repeats N] [--k K] [--json FILE]`. A step is forward, loss with
its metrics and backward of a ParlAI agent; the optimiser, which is the same on both sides, is left out. Batches hold 32
contexts and 32 replies of 32 random tokens each, every other reply to be avoided. Each of the two models has about ten
million parameters, the embedding included; their sizes are printed. Times are medians of interleaved pairs, with the
range.

- `v8k`, `v50k`: the straightforward step's seconds for one of ours, so the ratio of tokens a second.
- `cringe_over_ce`: the same agent of ours, its seconds on this batch for one on the same batch with every reply plain,
  at a vocabulary of 50,000.
- `peak_memory_ratio`: ours for one byte of the other's at a vocabulary of 50,000. Each runs one step in a process of
  its own; counted is the peak of resident memory during the step (VmHWM of Linux, set back before it) above what was
  resident before it.

The seconds that the matrix products of our step take alone are printed too: below them no step can be, and the most
that the ratio could become is the straightforward step's seconds for one of these.

It judges nothing. The wishes are 1.3 at 8,000 and 2 at 50,000, at most 1.1 for the cost and at most 0.35 for memory.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would count as time of this process

import torch
import torch.nn.functional as F
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.metrics import AverageMetric
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import Batch
from parlai.core.torch_generator_agent import PPLMetric
from torch import Tensor

from parlai_safety import compat
from parlai_safety.agents.cringe.cringe import CringeAgent

THREADS = int(os.environ["OMP_NUM_THREADS"])
BATCH, CONTEXT, REPLY = 32, 32, 32


class Sizes(NamedTuple):
    """A model of about ten million parameters."""

    vocabulary: int
    width: int
    layers: int
    heads: int


MODELS = {"v8k": Sizes(8000, 256, 4, 4), "v50k": Sizes(50_000, 160, 2, 4)}
"""Layers count those of the encoder and as many of the decoder; the inner layers are four times as wide."""


class StraightforwardAgent(TransformerGeneratorAgent):
    """The published algorithm as one would write it down: every step over the scores of all target tokens."""

    def compute_loss(self, batch: Batch, return_output: bool = False) -> Any:
        scores, predictions, *_ = model_output = self.model(*self._model_input(batch), ys=batch.label_vec)
        targets, k = batch.label_vec, self.opt["cringe_k"]
        counted = targets.ne(self.NULL_IDX)
        avoid = counted & (batch.token_labels == 0)[:, None]
        follow = counted & ~avoid
        # Cross-entropy of every token, masked to those to follow.
        nll = F.nll_loss(
            F.log_softmax(scores, dim=-1, dtype=torch.float32).flatten(0, 1), targets.flatten(), reduction="none"
        )
        nll = nll.view(targets.shape)
        # k + 1 candidates of every token; its own id goes, or else the last of them.
        top = scores.topk(k + 1, dim=-1)
        same = top.indices == targets[..., None]
        absent = ~same.any(-1, keepdim=True)
        dropped = torch.cat((same[..., :-1], same[..., -1:] | absent), dim=-1)
        candidates = top.values.float() - 1e10 * dropped
        drawn = torch.distributions.Categorical(logits=candidates).sample()
        positive = candidates.gather(-1, drawn[..., None])
        negative = scores.gather(-1, targets[..., None]).float()
        pairs = torch.cat((positive, negative), dim=-1).flatten(0, 1)
        contrast = F.cross_entropy(pairs, torch.zeros_like(targets).flatten(), reduction="none").view(targets.shape)

        cost = nll * follow + self.opt["cringe_alpha"] * contrast * avoid
        self.record_local_metric("loss", AverageMetric.from_mask(cost, counted))
        self.record_local_metric("ppl", PPLMetric.from_mask(nll, follow))
        self.record_local_metric("cringe_loss", AverageMetric.from_mask(contrast, avoid))
        self.record_local_metric("token_acc", AverageMetric.from_mask(predictions == targets, follow))
        loss = cost.sum() / counted.sum()
        return (loss, model_output) if return_output else loss


def make_agent(kind: str, sizes: Sizes, folder: Path, k: int) -> Any:
    """An agent with random weights over a dictionary of made-up words."""
    words = folder / f"{sizes.vocabulary}.dict"
    if not words.exists():
        special = ["__null__", "__start__", "__end__", "__unk__"]
        names = special + [f"w{i}" for i in range(sizes.vocabulary - len(special))]
        words.write_text("".join(f"{name}\t{len(names) - i}\n" for i, name in enumerate(names)))
    agent = {"ours": CringeAgent, "straightforward": StraightforwardAgent}[kind]
    parser = ParlaiParser(True, True)
    CringeAgent.add_cmdline_args(parser)
    options = {
        "dict_file": str(words),
        "embedding_size": sizes.width,
        "ffn_size": 4 * sizes.width,
        "n_layers": sizes.layers,
        "n_heads": sizes.heads,
        "n_positions": 128,
        "dict_tokenizer": "space",
        "no_cuda": True,
        "cringe_k": k,
        "loglevel": "error",
    }
    opt = Opt(parser.parse_kwargs(**options))
    compat.apply_all()
    torch.manual_seed(0)
    made = agent(opt)
    assert len(made.dict) == sizes.vocabulary
    made.model.train()
    return made


def make_batch(vocabulary: int, every_reply_plain: bool = False) -> Batch:
    """Random tokens, none of them special, and labels that alternate."""
    generator = torch.Generator().manual_seed(1)

    def tokens(length: int) -> Tensor:
        return torch.randint(4, vocabulary, (BATCH, length), generator=generator)

    labels = torch.full((BATCH,), -1) if every_reply_plain else torch.arange(BATCH) % 2
    return Batch(batchsize=BATCH, text_vec=tokens(CONTEXT), label_vec=tokens(REPLY), token_labels=labels)


def step(agent: Any, batch: Batch) -> Callable[[], None]:
    def run() -> None:
        agent._local_metrics.clear()
        agent.zero_grad()
        agent.compute_loss(batch).backward()

    return run


class Took(NamedTuple):
    """Seconds of one run: on the clock, and of this process alone, which other work on the machine disturbs less."""

    wall: float
    cpu: float


def seconds(run: Callable[[], None]) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def compare(title: str, first: Callable[[], None], second: Callable[[], None], repeats: int) -> float:
    """Print the seconds of both and their ratio, and give the median of the ratios on the clock."""
    seconds(first), seconds(second)
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    print(f"  {title}: medians of {repeats} interleaved pairs")
    medians = {}
    for kind in Took._fields:
        a, b = ([getattr(pair[index], kind) for pair in pairs] for index in (0, 1))
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        medians[kind] = statistics.median(ratios)
        print(f"    {kind:>4}: {spread(a, '.3f')} s / {spread(b, '.3f')} s, ratio {spread(ratios, '.2f')}")
    rates = [f"{BATCH * REPLY / statistics.median(pair[i].wall for pair in pairs):,.0f}" for i in (0, 1)]
    print(f"    target tokens a second: {' / '.join(rates)}")
    return medians["wall"]


def products_alone(agent: Any, sizes: Sizes, repeats: int) -> Took:
    """Seconds of nothing but the matrix products of our step, at the rate that products of its layers' sizes reach.

    Forward and backward of every linear layer; of the output layer forward for all tokens, backward for half of them.
    """
    tokens = BATCH * REPLY
    linear = sum(m.weight.numel() for m in agent.model.modules() if isinstance(m, torch.nn.Linear))
    floating = tokens * (6 * linear + 4 * sizes.vocabulary * sizes.width)
    left, right = torch.randn(tokens, 4 * sizes.width), torch.randn(4 * sizes.width, sizes.width)
    count = 40
    runs = [seconds(lambda: [torch.mm(left, right) for _ in range(count)]) for _ in range(repeats)]
    steps = floating / (2 * left.numel() * sizes.width * count)
    return Took(*(steps * min(times) for times in zip(*runs, strict=True)))


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def peak_of_step(kind: str, sizes: Sizes, folder: Path, k: int) -> int:
    """Bytes of one step at its peak, above what was resident before; to be run in a process of its own."""
    agent, batch = make_agent(kind, sizes, folder, k), make_batch(sizes.vocabulary)
    few = Batch(
        batchsize=2,
        text_vec=batch.text_vec[:2, :4],
        label_vec=batch.label_vec[:2, :4],
        token_labels=batch.token_labels[:2],
    )
    step(agent, few)()
    agent.zero_grad()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(agent, batch)()
    return resident("VmHWM") - before


def peak_in_own_process(kind: str, name: str, folder: Path, k: int) -> int:
    command = [sys.executable, __file__, "--peak", kind, name, str(folder), "--k", str(k)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    known = parser.parse_args()
    k = known.k
    torch.set_num_threads(THREADS)
    if known.peak:
        kind, name, place = known.peak
        print(peak_of_step(kind, MODELS[name], Path(place), k))
        return
    found: dict[str, dict[str, float]] = {"speedup": {}, "peak_memory_ratio": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, sizes in MODELS.items():
            batch = make_batch(sizes.vocabulary)
            ours, other = (make_agent(kind, sizes, folder, k) for kind in ("ours", "straightforward"))
            count = sum(p.numel() for p in ours.model.parameters())
            print(f"{name}: {sizes}, {count / 1e6:.1f} million parameters, {THREADS} threads")
            alone = products_alone(ours, sizes, known.repeats)
            print(f"  the matrix products of our step alone: wall {alone.wall:.3f} s, cpu {alone.cpu:.3f} s")
            found["speedup"][name] = compare(
                "straightforward / ours", step(other, batch), step(ours, batch), known.repeats
            )
        plain = make_batch(sizes.vocabulary, every_reply_plain=True)
        found["speedup"]["cringe_over_ce"] = compare(
            "ours / ours with cross-entropy alone", step(ours, batch), step(ours, plain), known.repeats
        )
        peaks = [peak_in_own_process(kind, "v50k", folder, k) for kind in ("ours", "straightforward")]
        found["peak_memory_ratio"]["v50k"] = peaks[0] / peaks[1]
        print(f"  peak of a step: ours {peaks[0] / 1e6:.0f} MB / {peaks[1] / 1e6:.0f} MB = {peaks[0] / peaks[1]:.3f}")
    if known.json:
        known.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

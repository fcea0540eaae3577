"""How fast replies are found: the batched sampler against ParlAI's own `_generate`, on one model and one batch.

Run it with `python tests/benchmarks/generation.py [--batch 64] [--tokens 50] [--repeats 5] [--json FILE]`. The model is
made here, untrained: 9.5M parameters, a vocabulary of 8,000 words, 256 wide, 4 + 4 layers; contexts have 30 tokens. The
end token is kept from being said, so that both sides write all the tokens. A ratio is that of two runs, one behind the
other; printed are the median of the ratios and their range. It judges nothing. The wishes are 8 for greedy and nucleus,
5 for a beam of 10 with 3-gram blocking, and 1.5 for 25 samples a context against 25 calls of the sampler.

Beside each ratio stands the limit that the machine sets: ParlAI's time over that of the encoder and of the matrix
products alone that the decoder's layers and the output layer need for these tokens. They are measured at their own
shapes, right after the runs and as medians, so that other work on the machine weighs on them as it does on the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would take time from those that work

import torch
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.message import Message
from parlai.core.params import ParlaiParser
from parlai.utils import logging

from parlai_safety import plugin
from parlai_safety.agents.generation import fast_generation
from parlai_safety.modeling.sampler import Decoding, generate

VOCABULARY, WIDTH, LAYERS, CONTEXT = 8000, 256, 4, 30
SPECIAL = ("__null__", "__start__", "__end__", "__unk__")
SAMPLES = 25


def make_agent(folder: Path, tokens: int) -> Any:
    file = folder / "dict"
    words = [*SPECIAL, *(f"w{i}" for i in range(VOCABULARY - len(SPECIAL)))]
    file.write_text("".join(f"{word}\t{10**6 - i}\n" for i, word in enumerate(words)))
    parser = ParlaiParser(True, True)
    TransformerGeneratorAgent.add_cmdline_args(parser)
    opt = parser.parse_kwargs(
        dict_file=str(file),
        dict_tokenizer="space",
        embedding_size=WIDTH,
        ffn_size=4 * WIDTH,
        n_layers=LAYERS,
        n_heads=4,
        n_positions=max(128, tokens),
        text_truncate=64,
        label_truncate=tokens,
        no_cuda=True,
    )
    torch.manual_seed(0)
    agent = TransformerGeneratorAgent(opt)
    agent.model.eval()
    with torch.no_grad():
        agent.model.embeddings.weight[agent.END_IDX] = 0  # greedy search knows no least length
    return agent


def make_batch(agent: Any, size: int) -> Any:
    draw = random.Random(1)
    texts = [" ".join(f"w{draw.randrange(7000)}" for _ in range(CONTEXT)) for _ in range(size)]
    return agent.batchify([agent.clone().observe(Message({"text": t, "episode_done": True})) for t in texts])


def configure(agent: Any, tokens: int, **options: Any) -> None:
    """Set ParlAI's options."""
    agent.opt.update({"inference": "greedy", "beam_size": 1, "topp": 0.9, **options})
    agent.beam_size, agent.beam_min_length = agent.opt["beam_size"], tokens
    agent.beam_block_ngram = options.get("beam_block_ngram", -1)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def products(rows: int, tokens: int) -> float:
    """Seconds that the matrix products of the decoder's layers and of the output layer take."""
    total = 0.0
    shapes = {(WIDTH, 3 * WIDTH): LAYERS, (WIDTH, WIDTH): 3 * LAYERS, (WIDTH, 4 * WIDTH): LAYERS}
    for (inner, outer), times in {**shapes, (4 * WIDTH, WIDTH): LAYERS, (WIDTH, VOCABULARY): 1}.items():
        x, weights = torch.randn(rows, inner), torch.randn(outer, inner)
        runs = [seconds(lambda x=x, w=weights: torch.nn.functional.linear(x, w)) for _ in range(15)]
        total += times * statistics.median(runs)
    return total * tokens


def compare(name: str, slow: Callable[[], Any], fast: Callable[[], Any], repeats: int, tokens: int) -> dict[str, float]:
    """Print and return how much faster `fast` is; both write that many tokens."""
    slow(), fast()
    pairs = [(seconds(slow), seconds(fast)) for _ in range(repeats)]
    ratios = [a / b for a, b in pairs]
    before, after = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    print(
        f"{name}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        f"  ({tokens / before:,.0f} -> {tokens / after:,.0f} tokens/s, medians of {repeats} interleaved pairs)"
    )
    return {"ratio": statistics.median(ratios), "before": before}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--batch", type=int, default=64, help="contexts")
    arguments.add_argument("--tokens", type=int, default=50, help="new tokens a reply")
    arguments.add_argument("--repeats", type=int, default=5, help="interleaved pairs of runs")
    arguments.add_argument("--only", choices=("greedy", "nucleus", "beam", "samples"), help="one part alone")
    arguments.add_argument("--json", type=Path, help="file for the medians of the ratios")
    args = arguments.parse_args()
    plugin.register()
    logging.disable()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_grad_enabled(False)
    speedup = {}
    with tempfile.TemporaryDirectory() as folder:
        agent = make_agent(Path(folder), args.tokens)
    batch, tokens = make_batch(agent, args.batch), args.batch * args.tokens

    def sample(decoding: Decoding) -> int:
        """Run the sampler, and check that it wrote all the tokens."""
        names = {"start": agent.START_IDX, "end": agent.END_IDX, "null": agent.NULL_IDX}
        found = generate(agent.model, agent._encoder_input(batch), decoding, **names)
        assert int(found.lengths.min()) == args.tokens
        return int(found.lengths.sum())

    fast_generation(agent)

    def search(kind: Any, beam_size: int) -> None:
        """The whole `_generate` of a class of agent, as `eval_step` calls it."""
        replies, _ = kind._generate(agent, batch, beam_size, args.tokens)
        assert min(len(reply[0]) for reply in replies) == args.tokens + 1  # ParlAI counts the start token

    searches: dict[str, dict[str, Any]] = {
        "greedy": {},
        "nucleus": {"inference": "nucleus"},
        "beam": {"inference": "beam", "beam_size": 10, "beam_block_ngram": 3},
    }
    for name, options in searches.items():
        if args.only not in (None, name):
            continue
        configure(agent, args.tokens, **options)
        beam_size = options.get("beam_size", 1)
        found = compare(
            name,
            lambda b=beam_size: search(TransformerGeneratorAgent, b),
            lambda b=beam_size: search(type(agent), b),
            args.repeats,
            tokens,
        )
        speedup[name] = found["ratio"]
        encoding = statistics.median(
            seconds(lambda: agent.model.encoder(*agent._encoder_input(batch))) for _ in range(5)
        )
        least = encoding + products(args.batch * beam_size, args.tokens)
        print(f"  encoder and matrix products alone: {least:.3f} s; limit {found['before'] / least:.2f}")
    if args.only in (None, "samples"):
        one = Decoding("nucleus", min_length=args.tokens, max_length=args.tokens)
        many = Decoding("nucleus", min_length=args.tokens, max_length=args.tokens, samples=SAMPLES)
        found = compare(
            "samples",
            lambda: [sample(one) for _ in range(SAMPLES)],
            lambda: sample(many),
            max(1, args.repeats // 2),
            tokens * SAMPLES,
        )
        speedup["samples"] = found["ratio"]
    if args.json:
        args.json.write_text(json.dumps({"speedup": speedup}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

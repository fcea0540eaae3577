"""What a training step of `safety:causal_lm` costs, against transformers' own Trainer on the same work.

Run it with `python tests/benchmarks/causal_step.py [--repeats N] [--json FILE]`. A step is forward, loss, backward,
clipping, AdamW and the learning-rate scheduler. The Trainer runs its own loop; what it does between the beginning and
the end of a step is counted, and after each of its steps the agent takes one on the same batch. Both hold the same
model (Llama, fp32) and begin with the same weights. Batches hold 32 conversations: prompts of 16 to 64 random tokens
and replies of 16 to 48, of which the replies alone are learned. To the Trainer prompt and reply are one sequence,
padded at the right, with an attention mask and labels; to the agent they are ParlAI's batch. Reading and padding are
left out on both sides. The two models have about ten million parameters; their sizes are printed.

- `speed`: the Trainer's seconds for one of the agent's, the median of all steps, with the range.
- `peak_memory`: the agent's bytes for one of the Trainer's. Each runs in a process of its own; counted is the peak of
  resident memory during a step (VmHWM of Linux, set back before it) above what was resident before it, when weights
  and moments of the optimiser are there already.

It judges nothing. The wish is at least 1.0 for speed and at most 1.0 for memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would count as time of this process
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from parlai.core.agents import create_agent
from parlai.core.torch_agent import Batch
from parlai.scripts.train_model import TrainModel
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from parlai_safety import compat, plugin
from tests.benchmarks.steps import AtSteps, Peak, Took, apart, now, since
from tests.tiny_causal import tiny_causal

THREADS = int(os.environ["OMP_NUM_THREADS"])
CONVERSATIONS = 32
RATE = 1e-5


class Sizes(NamedTuple):
    """A model of about ten million parameters."""

    vocabulary: int
    width: int
    layers: int


MODELS = {"v8k": Sizes(8000, 256, 8), "v50k": Sizes(50_000, 96, 4)}


class Talk(NamedTuple):
    """Prompts and replies as both sides want them."""

    prompts: list[Tensor]
    replies: list[Tensor]

    def tokens(self) -> int:
        """All that are no padding."""
        return sum(map(len, self.prompts)) + sum(map(len, self.replies))

    def for_agent(self, null: int) -> Batch:
        """ParlAI's batch."""
        prompts, replies = (torch.nn.utils.rnn.pad_sequence(rows, True, null) for rows in self)
        return Batch(batchsize=len(prompts), text_vec=prompts, label_vec=replies)

    def for_trainer(self) -> dict[str, Tensor]:
        """A batch of the Trainer."""
        both = [torch.cat(pair) for pair in zip(*self, strict=True)]
        learned = [torch.cat((torch.full_like(p, -100), r)) for p, r in zip(*self, strict=True)]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(both, True, 0),
            "attention_mask": pad([torch.ones_like(row) for row in both], True, 0),
            "labels": pad(learned, True, -100),
        }


def make_talk(vocabulary: int, seed: int, conversations: int = CONVERSATIONS, shortest: int = 16) -> Talk:
    """Random tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)

    def rows(longest: int) -> list[Tensor]:
        lengths = torch.randint(shortest, longest + 1, (conversations,), generator=generator).tolist()
        return [torch.randint(10, vocabulary, (length,), generator=generator) for length in lengths]

    return Talk(rows(4 * shortest), rows(3 * shortest))


def make_model(sizes: Sizes, folder: Path) -> Path:
    """A Llama with random weights."""
    place = folder / str(sizes.vocabulary)
    if not place.exists():
        tiny_causal(
            place,
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.width,
            intermediate_size=8 * sizes.width // 3,
            num_hidden_layers=sizes.layers,
            initializer_range=0.02,
        )
    return place


def make_agent(place: Path) -> Any:
    """The agent, ready to train."""
    opt = TrainModel.setup_args().parse_kwargs(
        model="safety:causal_lm",
        hf_model=str(place),
        datatype="train",
        optimizer="adamw",
        learningrate=RATE,
        gradient_clip=1.0,
        text_truncate=128,
        label_truncate=128,
        no_cuda=True,
        loglevel="error",
    )
    agent = create_agent(opt)
    agent.model.train()
    return agent


def agent_step(agent: Any, talk: Talk) -> Callable[[], None]:
    batch = talk.for_agent(agent.NULL_IDX)

    def run() -> None:
        agent._local_metrics.clear()
        agent.train_step(batch)

    return run


class Batches(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Batches that are made already."""

    def __init__(self, talks: list[Talk]) -> None:
        self.made = [talk.for_trainer() for talk in talks]

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.made[index]


def train_with_trainer(place: Path, folder: Path, talks: list[Talk], callback: AtSteps) -> Any:
    """One pass of the Trainer's own loop, in the order given; returns the model."""
    settings = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=1,
        max_steps=len(talks),
        learning_rate=RATE,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.01,  # that of ParlAI's, which is torch's own
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
    )
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=Batches(talks),
        data_collator=lambda rows: rows[0],
        callbacks=[callback],
    )
    trainer.train()
    return model


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def compare(sizes: Sizes, folder: Path, repeats: int) -> float:
    """Print the seconds of both and their ratio, and give the median of the ratios on the clock."""
    place, warm = make_model(sizes, folder), 2
    talks = [make_talk(sizes.vocabulary, seed) for seed in range(repeats + warm)]
    agent = make_agent(place)
    steps = [agent_step(agent, talk) for talk in talks]
    count = sum(p.numel() for p in agent.model.parameters())
    print(f"{sizes}, {count / 1e6:.1f} million parameters, {THREADS} threads, {repeats} interleaved pairs of steps")
    started, trainers, ours = [], [], []

    def after(step: int) -> None:
        trainers.append(since(started[-1]))
        before = now()
        steps[step]()
        ours.append(since(before))

    model = train_with_trainer(place, folder, talks, AtSteps(lambda _: started.append(now()), after))
    begun = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    print(f"  the trained weights differ by {apart(agent.model.lm, model, begun):.4f} of what the training changed")
    medians = {}
    for index, kind in enumerate(Took._fields):
        a, b = ([took[index] for took in side[warm:]] for side in (trainers, ours))
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        medians[kind] = statistics.median(ratios)
        print(f"  {kind:>4}: Trainer {spread(a, '.3f')} s / agent {spread(b, '.3f')} s, ratio {spread(ratios, '.2f')}")
    tokens = [talk.tokens() for talk in talks[warm:]]
    rates = [
        statistics.median(n / took.wall for n, took in zip(tokens, side[warm:], strict=True))
        for side in (trainers, ours)
    ]
    print(f"  tokens a second: Trainer {rates[0]:,.0f}, agent {rates[1]:,.0f}")
    return medians["wall"]


def peak_of_step(kind: str, sizes: Sizes, folder: Path) -> int:
    """Bytes of one step at its peak; to be run in a process of its own, after a small step."""
    place, peak = make_model(sizes, folder), Peak()
    talks = [make_talk(sizes.vocabulary, 0, 2, 2), make_talk(sizes.vocabulary, 1)]
    if kind == "trainer":
        train_with_trainer(place, folder, talks, AtSteps(peak.begin, peak.end))
    else:
        agent = make_agent(place)
        for number, talk in enumerate(talks):
            step = agent_step(agent, talk)
            peak.begin(number)
            step()
            peak.end(number)
    return peak.step


def peak_in_own_process(kind: str, name: str, folder: Path) -> int:
    command = [sys.executable, __file__, "--peak", kind, name, str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    known = parser.parse_args()
    torch.set_num_threads(THREADS)
    plugin.register()
    compat.apply_all()
    if known.peak:
        kind, name, place = known.peak
        print(peak_of_step(kind, MODELS[name], Path(place)))
        return
    found: dict[str, dict[str, float]] = {"speed": {}, "peak_memory": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, sizes in MODELS.items():
            found["speed"][name] = compare(sizes, folder, known.repeats)
            agent, trainer = (peak_in_own_process(kind, name, folder) for kind in ("agent", "trainer"))
            found["peak_memory"][name] = agent / trainer
            print(
                f"  peak of a step: agent {agent / 1e6:.0f} MB / Trainer {trainer / 1e6:.0f} MB = {agent / trainer:.3f}"
            )
    if known.json:
        known.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

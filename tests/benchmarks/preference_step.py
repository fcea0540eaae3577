"""What a training step of `safety:dpo/causal_lm` costs, against TRL's `DPOTrainer` on the same work.

Run it with `python tests/benchmarks/preference_step.py [--repeats N] [--models NAME ...] [--ragged] [--quick]
[--json FILE]`. A step is forward, loss, backward, clipping, AdamW and the scheduler. TRL's trainer runs its own loop;
what it does between the beginning and the end of a step is counted, and after each of its steps our agents take theirs
on the same pairs. All hold the same model with random weights in fp32, and begin with the same weights. A context is
192 random tokens and has two replies of 32 (`--ragged`: half to all of that). TRL reads the tokens as they are, without
its own tokenization; reading and padding are left out on both sides.

TRL's settings: `default`, which computes layers again in backward and asks a second model, the reference, in every
step; `stored_layers`, the same without computing layers again; and `best`, which also has the reference's log-probs
computed before training. (`padding_free` of TRL 1.16 does nothing.) Ours, all without computing layers again: `first`,
the first time that pairs are seen, when the reference is asked; `cached`, all later times; `adpo_first` and `adpo`,
the same with a third reply to each context, which is measured against the toxic model: the reference behind the control
token (the loss is a reconstruction).

What this compares: TRL computes the output layer's scores at all positions, prompts too, and puts each reply behind a
prompt of its own; ours computes scores of replies alone, in chunks, and a prompt once for all its replies. `default` is
slow in part because it computes layers again; `stored_layers` and `best` do not.

- `speed`: TRL's seconds for one of ours, the median of all steps: its settings over `first` and over `cached`, on the
  clock (`wall`) and of this process alone (`cpu`), which other work on the machine disturbs less.
  `first_epoch` is TRL's best with its computation of the reference counted, over `first`.
- `adpo_per_reply`: seconds for a reply of `adpo` for one of `cached` (`cached`), and of `adpo_first` for one of
  `first`, where the toxic model reads each prompt once more (`first`).
- `peak_memory`: our bytes for one of TRL's. Each runs in a process of its own. `step` counts the peak of resident
  memory in a step above what was resident before it, when weights and moments are there already, `whole` that above
  what was resident before the model was made: with weights, gradients, moments and reference. `again` is ours with
  layers computed again in backward, as TRL's default has it.

`--json` writes all of that, and the seconds and bytes that the ratios are of. It judges nothing. The wishes: `speed` at
least 1.5 against TRL's default setting and above 1.0 against its best one, memory at most 0.6, and ADPO no slower per
reply.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would disturb the other side
os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from datasets import Dataset, disable_progress_bars
from parlai.core.agents import create_agent
from parlai.core.torch_agent import Batch
from parlai.scripts.train_model import TrainModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

from parlai_safety import compat, plugin
from tests.benchmarks.steps import AtSteps, Peak, Took, apart, now, since
from tests.tiny_causal import tiny_causal

THREADS = int(os.environ["OMP_NUM_THREADS"])
RATE = 1e-5
PROMPT, REPLY = 192, 32
WARM = 2


class Sizes(NamedTuple):
    """A model, and how many contexts are in a batch of it."""

    kind: str
    config: dict[str, int]
    contexts: int


MODELS = {
    "6x384": Sizes(
        "llama",
        dict(
            vocab_size=8000,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=512,
        ),
        8,
    ),
    "gpt2": Sizes("gpt2", dict(vocab_size=50257, n_embd=768, n_layer=12, n_head=12, n_positions=1024), 2),
}
QUICK = {"quick": Sizes("llama", dict(vocab_size=500, max_position_embeddings=512), 4)}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "stored_layers": {"gradient_checkpointing": False},
    "best": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
}


class Talk(NamedTuple):
    """B contexts, each with a chosen, a rejected and a toxic reply."""

    prompts: list[Tensor]
    replies: list[list[Tensor]]

    def for_agent(self, null: int, replies: int) -> Batch:
        """ParlAI's batch, with the first few replies of each context."""
        pad = torch.nn.utils.rnn.pad_sequence
        of = torch.arange(len(self.prompts))
        batch = Batch(batchsize=len(of), text_vec=pad(self.prompts, True, null))
        for name, rows in zip(("label", "rejected", "toxic")[:replies], self.replies, strict=False):
            batch[f"{name}_vec"], batch[f"{name}_example"] = pad(rows, True, null), of
        return batch

    def for_trainer(self) -> list[dict[str, list[int]]]:
        """Rows of TRL's tokenized data."""
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        rows = zip(self.prompts, *self.replies[:2], strict=True)
        return [{name: ids.tolist() for name, ids in zip(names, row, strict=True)} for row in rows]


def make_talk(sizes: Sizes, seed: int, *, ragged: bool, contexts: int | None = None) -> Talk:
    """Random tokens, none of them special."""
    source = torch.Generator().manual_seed(seed)

    def rows(longest: int) -> list[Tensor]:
        shortest = longest // 2 if ragged else longest
        lengths = torch.randint(shortest, longest + 1, (contexts or sizes.contexts,), generator=source).tolist()
        return [torch.randint(10, sizes.config["vocab_size"], (length,), generator=source) for length in lengths]

    return Talk(rows(PROMPT), [rows(REPLY) for _ in range(3)])


def make_model(sizes: Sizes, folder: Path) -> Path:
    """A model with random weights."""
    place = folder / f"{sizes.kind}-{sizes.config['vocab_size']}"
    if not place.exists():
        tiny_causal(place, sizes.kind, initializer_range=0.02, **sizes.config)
    return place


def make_agent(place: Path, folder: Path, method: str = "dpo", **options: Any) -> Any:
    """The agent, ready to train; those of one folder share what the reference says."""
    opt = TrainModel.setup_args().parse_kwargs(
        model=f"safety:{method}/causal_lm",
        hf_model=str(place),
        datatype="train",
        optimizer="adamw",
        learningrate=RATE,
        gradient_clip=1.0,
        text_truncate=256,
        label_truncate=128,
        reference_cache=str(folder),
        no_cuda=True,
        loglevel="error",
        **options,
    )
    agent = create_agent(opt)
    agent.model.train()
    return agent


def agent_step(agent: Any, talk: Talk, replies: int = 2) -> Callable[[], None]:
    batch = talk.for_agent(agent.NULL_IDX, replies)

    def run() -> None:
        agent._local_metrics.clear()
        agent.train_step(batch)

    return run


class Tokenized(DPOTrainer):
    """TRL's trainer on data that is tokenized already."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def make_trainer(
    place: Path, folder: Path, talks: list[Talk], callback: AtSteps, settings: dict[str, Any]
) -> DPOTrainer:
    """TRL's trainer, with the reference computed already where it does that before training."""
    config = DPOConfig(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=len(talks[-1].prompts),
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
        bf16=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
        **settings,
    )
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = Tokenized(
        model=AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list([row for talk in talks for row in talk.for_trainer()]),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def timed(run: Callable[[], None]) -> Took:
    before = now()
    run()
    return since(before)


class Times(NamedTuple):
    """What each step took, or the seconds of it by one clock."""

    trl: list[Any]
    first: list[Any]
    cached: list[Any]
    adpo_first: list[Any]
    adpo: list[Any]


def interleaved(place: Path, folder: Path, talks: list[Talk], settings: dict[str, Any]) -> tuple[Times, Took, float]:
    """Steps of TRL's and ours in turn; also what TRL took before training, and how far the trained weights differ."""
    first, cached = (make_agent(place, folder) for _ in range(2))
    adpo_first, adpo = (make_agent(place, folder / "adpo", "adpo", toxic_token=True) for _ in range(2))
    took, begun = Times([], [], [], [], []), [now()]

    def before(step: int) -> None:
        begun[0] = now()

    def after(step: int) -> None:
        took.trl.append(since(begun[0]))
        took.first.append(timed(agent_step(first, talks[step])))
        took.cached.append(timed(agent_step(cached, talks[step])))
        took.adpo_first.append(timed(agent_step(adpo_first, talks[step], 3)))
        took.adpo.append(timed(agent_step(adpo, talks[step], 3)))

    start = now()
    trainer = make_trainer(place, folder, talks, AtSteps(before, after), settings)
    asked = since(start)
    trainer.train()
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    return Times(*(values[WARM:] for values in took)), asked, apart(first.model.lm, trainer.model, model)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(one, other, strict=True))


def compare(sizes: Sizes, folder: Path, repeats: int, *, ragged: bool) -> dict[str, Any]:
    """Print the seconds of each setting, and give the ratios, by each clock."""
    place = make_model(sizes, folder)
    talks = [make_talk(sizes, seed, ragged=ragged) for seed in range(repeats + WARM)]
    found: dict[str, Any] = {"seconds": {}, "weights_differ": {}, "speed": {}, "adpo_per_reply": {}}
    for name, settings in SETTINGS.items():
        steps, asked, differ = interleaved(place, folder / name, talks, settings)
        found["weights_differ"][name], found["seconds"][name] = differ, {}
        print(f"  TRL {name}: the trained weights differ by {differ:.4f} of what the training changed")
        for clock, before in asked._asdict().items():
            took = Times(*([getattr(step, clock) for step in values] for values in steps))
            seconds = {side: spread(values) for side, values in took._asdict().items()}
            found["seconds"][name][clock] = seconds
            for side, each in seconds.items():
                took_most = f"{each['median']:.3f} [{each['least']:.3f}, {each['most']:.3f}] s"
                print(
                    f"    {clock:>4} {side:>10}: {took_most}, {sizes.contexts / each['median']:.2f} contexts a second"
                )
            speed = found["speed"].setdefault(clock, {})
            speed[name] = {"first": ratio(took.trl, took.first), "cached": ratio(took.trl, took.cached)}
            if name == "best":
                asking = before / len(talks)
                speed["first_epoch"] = ratio([value + asking for value in took.trl], took.first)
                found["adpo_per_reply"][clock] = {
                    "first": ratio(took.adpo_first, took.first) * 2 / 3,
                    "cached": ratio(took.adpo, took.cached) * 2 / 3,
                }
    return found


AGENTS: dict[str, dict[str, Any]] = {"first": {}, "cached": {}, "again": {"gradient_checkpointing": True}, "adpo": {}}


def peak_of_step(kind: str, sizes: Sizes, folder: Path, *, ragged: bool) -> Peak:
    """Bytes of the second step at its peak; to be run in a process of its own."""
    place = make_model(sizes, folder)
    talks = [make_talk(sizes, seed, ragged=ragged, contexts=sizes.contexts) for seed in range(2)]
    peak = Peak()
    if kind in SETTINGS:
        make_trainer(place, folder, talks, AtSteps(peak.begin, peak.end), SETTINGS[kind]).train()
        return peak
    method, replies = ("adpo", 3) if kind == "adpo" else ("dpo", 2)
    more = {"toxic_token": True} if kind == "adpo" else {}
    cache = folder / (kind if kind in ("cached", "adpo") else f"{kind}-{os.getpid()}")
    agent = make_agent(place, cache, method, **AGENTS[kind], **more)
    for number, talk in enumerate(talks):
        step = agent_step(agent, talk, replies)
        peak.begin(number)
        step()
        peak.end(number)
    return peak


def peaks(name: str, folder: Path, options: list[str]) -> dict[str, Any]:
    """The peaks of all in processes of their own: their ratios, and the bytes."""

    def run(kind: str) -> dict[str, int]:
        command = [sys.executable, __file__, "--peak", kind, name, str(folder), *options]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found: dict[str, int] = json.loads(answer.splitlines()[-1])
        return found

    for kind in ("cached", "adpo"):
        run(kind)  # the first run of these fills the cache
    bytes_of = {kind: run(kind) for kind in (*SETTINGS, *AGENTS)}
    for kind, each in bytes_of.items():
        print(f"  {kind:>13}: a step {each['step'] / 1e6:.0f} MB, whole {each['whole'] / 1e6:.0f} MB")
    pairs = [("first", "default"), ("again", "default"), ("first", "stored_layers"), ("cached", "best")]
    ratios = {
        what: {f"{one}/{other}": bytes_of[one][what] / bytes_of[other][what] for one, other in pairs}
        for what in ("step", "whole")
    }
    return {"peak_memory": ratios, "peak_bytes": bytes_of}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--models", nargs="*", choices=[*MODELS, *QUICK])
    parser.add_argument("--ragged", action="store_true", help="draw lengths, from half to all of the longest")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps, to see that it runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    known = parser.parse_args()
    torch.set_num_threads(THREADS)
    logging.set_verbosity_error()
    disable_progress_bars()
    warnings.simplefilter("ignore", FutureWarning)
    plugin.register()
    compat.apply_all()
    sizes = {**MODELS, **QUICK}
    if known.peak:
        kind, name, place = known.peak
        peak = peak_of_step(kind, sizes[name], Path(place), ragged=known.ragged)
        print(json.dumps({"step": peak.step, "whole": peak.whole}))
        return
    names = known.models or (QUICK if known.quick else MODELS)
    found: dict[str, Any] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            print(f"{name}: {sizes[name]}, {THREADS} threads, {'ragged' if known.ragged else 'even'} lengths")
            found[name] = compare(sizes[name], Path(place), 2 if known.quick else known.repeats, ragged=known.ragged)
            found[name].update(peaks(name, Path(place), ["--ragged"] if known.ragged else []))
            told = ("speed", "adpo_per_reply", "peak_memory")
            print(f"  {json.dumps({what: found[name][what] for what in told}, indent=2)}")
    if known.json:
        known.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How fast judges score: the linear judge in replies a second, neural judges against their bare forward pass.

Run it with `python tests/benchmarks/judging.py [REPEATS]`. Each figure is the median of interleaved runs after a
warm-up, with the range; it judges nothing. The wishes are 2,000 replies a second for the linear judge, and at most 1.3
times the bare forward pass of the same model on the same texts, tokenised and grouped beforehand, for a neural one.
Everything is made here: the linear judge and the vocabularies from the corpus that ships, the networks at random.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from parlai_safety.judges import Judge
from parlai_safety.judges.data import Example, tiny_examples
from parlai_safety.judges.hf import HfJudge
from parlai_safety.judges.linear import train_linear
from parlai_safety.judges.parlai_model import ParlaiJudge
from parlai_safety.judges.verdict import safe_score

LINEAR_REPLIES, NEURAL_REPLIES, CONTEXT_TURNS = 4000, 512, 4


class Took(NamedTuple):
    """Seconds of one run: on the clock, and of this process alone, which other work on the machine disturbs less."""

    wall: float
    cpu: float


def seconds(run: Callable[[], object]) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def scoring(judge: Judge, examples: list[Example]) -> Callable[[], object]:
    batch = ([e.reply for e in examples], [e.context for e in examples], [e.speaker for e in examples])

    def run() -> None:
        verdicts = safe_score(judge, *batch)
        assert all(verdict.p_unsafe is not None for verdict in verdicts)

    return run


def compare(name: str, judging: Callable[[], object], forward: Callable[[], object], repeats: int) -> None:
    """Print what a judge takes for each second of its model's forward pass."""
    seconds(judging), seconds(forward)
    pairs = [(seconds(judging), seconds(forward)) for _ in range(repeats)]
    print(f"{name}: {NEURAL_REPLIES} replies, medians of {repeats} interleaved pairs")
    for kind in Took._fields:
        whole, bare = ([getattr(pair[index], kind) for pair in pairs] for index in (0, 1))
        ratios = [a / b for a, b in zip(whole, bare, strict=True)]
        print(
            f"  {kind:>4}: judge {statistics.median(whole):.3f} s, bare forward {statistics.median(bare):.3f} s, "
            f"ratio {spread(ratios, '.3f')}"
        )


def linear(examples: list[Example], repeats: int) -> None:
    judge = train_linear(tiny_examples("valid"), seed=1)
    many = (examples * (1 + LINEAR_REPLIES // len(examples)))[:LINEAR_REPLIES]
    judging = scoring(judge, many)
    seconds(judging)
    runs = [seconds(judging) for _ in range(repeats)]
    print(f"linear: {LINEAR_REPLIES} replies in their contexts, medians of {repeats} runs")
    for kind in Took._fields:
        print(f"  {kind:>4}: {spread([LINEAR_REPLIES / getattr(run, kind) for run in runs], ',.0f')} replies/s")


def hf(examples: list[Example], folder: Path, repeats: int) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    texts = ["\n".join([*e.context, e.reply]) for e in examples]
    words.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=8000, special_tokens=special))
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=512, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    config = BertConfig(vocab_size=8000, id2label={0: "fine", 1: "toxic"}, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    judge = HfJudge(str(folder), context_turns=CONTEXT_TURNS)
    some = examples[:NEURAL_REPLIES]
    batches = [inputs for _, inputs in judge.batches(judge.encode([e.reply for e in some], [e.context for e in some]))]

    def forward() -> None:
        with torch.inference_mode():
            for inputs in batches:
                judge.model(**inputs)

    compare("hf, BERT of 4 layers, 256 wide", scoring(judge, some), forward, repeats)


def parlai(examples: list[Example], folder: Path, repeats: int) -> None:
    from parlai.scripts.train_model import TrainModel
    from parlai.utils import logging

    from parlai_safety import plugin

    plugin.register()
    logging.disable()
    lines = [
        f"text:{e.reply}\tlabels:{'__notok__' if e.unsafe else '__ok__'}\tepisode_done:True\n"
        for e in examples
        if "\t" not in e.reply and "\n" not in e.reply
    ]
    (folder / "data.txt").write_text("".join(lines))
    TrainModel.main(
        task="fromfile:parlaiformat",
        fromfile_datapath=str(folder / "data.txt"),
        fromfile_datatype_extension=False,
        model="transformer/classifier",
        model_file=str(folder / "model"),
        datapath=str(folder / "parlai"),
        classes=["__ok__", "__notok__"],
        embedding_size=256,
        ffn_size=1024,
        n_layers=4,
        n_heads=4,
        n_positions=512,
        truncate=512,
        batchsize=4,
        max_train_steps=1,
        validation_every_n_epochs=-1,
        save_after_valid=False,
        verbose=False,
    )
    judge = ParlaiJudge(str(folder / "model"), context_turns=CONTEXT_TURNS)
    some = examples[:NEURAL_REPLIES]
    seen: list[torch.Tensor] = []
    model = judge.agent.model
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    scoring(judge, some)()
    hook.remove()

    def forward() -> None:
        with torch.no_grad():
            for tokens in seen:
                model(tokens)

    compare("parlai, transformer of 4 layers, 256 wide", scoring(judge, some), forward, repeats)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    examples = tiny_examples("train")
    # The files go by kind, so every so many-th example is a mixture.
    examples = [example for start in range(8) for example in examples[start::8]]
    linear(examples, repeats)
    for case in (hf, parlai):
        with tempfile.TemporaryDirectory() as folder:
            case(examples, Path(folder), repeats)


if __name__ == "__main__":
    main()

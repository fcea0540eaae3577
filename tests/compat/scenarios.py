"""ParlAI in situations that break without a repair, run as a script: `python scenarios.py OUT.json [NAME ...]`.

Each scenario notes what came of it, or its error as "Type: message", so that the same list can be run with and without
the repairs, each time in one process. It runs in an empty folder, which the tests prepare and read.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from pathlib import Path

from parlai_safety import compat
from parlai_safety.compat import single

TINY = {"n_layers": 1, "embedding_size": 16, "ffn_size": 16, "n_heads": 2, "label_truncate": 8, "text_truncate": 32}
SCENARIOS = []


def scenario(function):
    SCENARIOS.append(function)
    return function


def train(model_file, **options):
    from parlai.scripts.train_model import TrainModel

    defaults = {"task": "demo:plain", "model": "transformer/generator", "batchsize": 2, "loglevel": "error"}
    if "max_train_steps" not in options:
        options["num_epochs"] = 1
    return TrainModel.main(model_file=model_file, skip_generation=True, **defaults, **options, **TINY)


@scenario
def train_with_default_scheduler():
    valid, _ = train("plateau")
    scheduler = json.loads(Path("plateau.opt").read_text())["lr_scheduler"]
    return {"scheduler": scheduler, "examples": int(valid["exs"])}


@scenario
def plateau_scheduler():
    import torch
    from parlai.nn.lr_scheduler import ParlAILRScheduler

    def make(states):
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        opt = {"lr_scheduler": "reduceonplateau", "lr_scheduler_patience": 1, "lr_scheduler_decay": 0.5}
        return optimiser, ParlAILRScheduler.lr_scheduler_factory(opt, optimiser, states)

    optimiser, scheduler = make({})
    rates = []
    for loss in (1.0, 1.0, 1.0, 0.5, 0.6, 0.6):
        scheduler.valid_step({"loss": loss})
        rates.append(optimiser.param_groups[0]["lr"])
    _, resumed = make({"lr_scheduler": scheduler.get_state_dict(), "lr_scheduler_type": "reduceonplateau"})
    return {"rates": rates, "best_after_resume": resumed.scheduler.best}


@scenario
def command_of_a_finished_run_again():
    # Linear decay ends the run from inside a step, and the second time in the very first one.
    options = {"lr_scheduler": "linear", "max_train_steps": 3}
    train("linear", **options)
    first = json.loads(Path("linear.trainstats").read_text())["total_epochs"]
    train("linear", **options)
    return {"first": first, "again": json.loads(Path("linear.trainstats").read_text())["total_epochs"]}


@scenario
def stats_of_a_finished_run():
    return json.loads(Path("linear.trainstats").read_text())["total_epochs"]


@scenario
def preset_by_name():
    from parlai.core.opt import Opt
    from parlai.core.params import ParlaiParser

    single.PRESETS = Path("presets")
    opt = ParlaiParser(True, False).parse_args(["-o", "safety/quick"])
    return {
        "ours": opt["batchsize"],
        "home": dict(Opt.load_init("mine")),
        "both": dict(Opt.load_init("mine,nested/x")),
        "file": dict(Opt.load_init("presets/quick.opt")),
    }


@scenario
def preset_missing():
    from parlai.core.params import ParlaiParser

    single.PRESETS = Path("presets")
    return dict(ParlaiParser(True, False).parse_args(["-o", "quik"]))


@scenario
def worlds_of_registered_repository():
    from parlai.core import loader, params, worlds

    def name(task, **kind):
        found = {
            f"{w.__module__}.{w.__name__}" if w else None for w in (m.load_world_module(task, **kind) for m in where)
        }
        (only,) = found
        return only

    where = (loader, params, worlds)
    return {
        "own self-chat": name("demo:chat", selfchat_task=True),
        "own interactive": name("demo:chat", interactive_task=True),
        "own by variant": name("demo:chat:loud", interactive_task=True),
        "own by path": name("compat_demo.tasks.chat.agents", selfchat_task=True),
        "none": name("demo:plain", selfchat_task=True),
        "stock": name("convai2", selfchat_task=True, num_agents=2),
        "teacher and model": name("demo:plain", num_agents=2),
        "many": name("demo:plain", num_agents=3),
        "unknown": name("demo:plain"),
        "given": name("demo:plain", selfchat_task=True, default_world=worlds.MultiAgentDialogWorld),
    }


def self_chat(**options):
    from parlai.scripts.self_chat import SelfChat

    logs = SelfChat.main(
        model_file="chatty",
        selfchat_max_turns=2,
        display_examples=False,
        outfile="self_chat",
        loglevel="error",
        inference="greedy",
        **options,
    )
    return [[act["text"] for act in exchange] for episode in logs for exchange in episode]


@scenario
def a_model_to_chat_with():
    train("chatty", lr_scheduler="none")
    return True


@scenario
def self_chat_on_a_task():
    exchanges = self_chat(task="demo:plain")
    return {"exchanges": len(exchanges), "opening": exchanges[0][0]}


@scenario
def self_chat_with_openers():
    exchanges = self_chat(task="demo:plain:shouted", seed_messages_from_task=True)
    return {"opening": exchanges[1][0]}


@scenario
def interactive_on_a_task():
    from parlai.scripts.interactive import Interactive

    lines = iter(["hello", "[DONE]", "hello again", "[EXIT]"])
    ask, builtins.input = builtins.input, lambda _: next(lines)
    try:
        Interactive.main(model_file="chatty", task="demo:plain", outfile="talk", loglevel="error", inference="greedy")
    finally:
        builtins.input = ask
    episodes = [json.loads(line)["dialog"] for line in Path("talk.jsonl").read_text().splitlines()]
    return [turn[0]["text"] for episode in episodes for turn in episode]


@scenario
def byte_level_text_without_leading_space():
    from parlai.core.dict import DictionaryAgent
    from parlai.core.params import ParlaiParser
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["hello you", "good day to you"] * 5, vocab_size=290)
    tokenizer.save_model(".", "bpe")
    parser = ParlaiParser(True, False)
    DictionaryAgent.add_cmdline_args(parser)
    opt = parser.parse_kwargs(dict_tokenizer="bytelevelbpe", bpe_vocab="bpe-vocab.json", bpe_merge="bpe-merges.txt")
    dictionary = DictionaryAgent(opt)
    ids = dictionary.txt2vec("hello you")
    return {"whole": dictionary.vec2txt(ids), "spaceless": dictionary.vec2txt([dictionary["h"], *ids])}


@scenario
def byte_level_text_as_before():
    from types import SimpleNamespace

    from parlai.utils.bpe import BPEHelper

    repaired, stock = BPEHelper.decode, BPEHelper.decode.__wrapped__
    results = []
    for prefix in (True, False):
        helper = SimpleNamespace(
            debug=False,
            add_prefix_space=prefix,
            _special_tokens={"<s>": 1, "</s>": 1},
            helper_decode=lambda tokens, ids, _: "".join(f" {t}{i}" for t, i in zip(tokens, ids, strict=True)),
        )
        for tokens in (["a"], ["a", "b"], ["<s>", "a"], ["a", "<s>", "b"], ["<s>", "a", "</s>", "b", "c"]):
            ids = list(range(len(tokens)))
            for decode in (stock, repaired):
                helper.decode = lambda *arguments, decode=decode, helper=helper: decode(helper, *arguments)
                results.append(helper.decode(tokens, ids, " "))
    return [results[0::2], results[1::2]]


@scenario
def text_to_array():
    import numpy
    from parlai.core.dict import DictionaryAgent

    dictionary = DictionaryAgent({"datatype": "train"})
    dictionary.add_to_dict(["hello", "you"])
    array = dictionary.txt2vec("hello you", numpy.ndarray)
    return {
        "array": array.tolist(),
        "kind": array.dtype.kind,
        "empty": dictionary.txt2vec("", numpy.ndarray).dtype.kind,
        "list": dictionary.txt2vec("hello you"),
        "tuple": list(dictionary.txt2vec("hello you", tuple)),
    }


def tiny_gpt2(folder):
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2Model

    os.makedirs(folder)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["hello you", "good day"] * 5, vocab_size=280, special_tokens=["<|endoftext|>"])
    tokenizer.save_model(folder)
    torch.manual_seed(0)
    size = tokenizer.get_vocab_size()
    # Wide weights: the hypotheses must differ enough to change places.
    config = GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    GPT2Model(config).save_pretrained(folder)


@scenario
def beams_of_gpt2():
    """Beam search with the cache, against beam search that computes everything anew in every step."""
    import torch
    from parlai.core.agents import create_agent
    from parlai.core.message import Message
    from parlai.core.params import ParlaiParser

    tiny_gpt2("gpt2")
    opt = ParlaiParser(True, True).parse_kwargs(
        model="hugging_face/gpt2", model_name="gpt2", inference="beam", beam_size=3, text_truncate=20, label_truncate=10
    )
    agent = create_agent(opt)
    observations = []
    for text in ("hello you good day", "good", "hello hello you"):
        copy = agent.clone()
        observations.append(copy.observe(Message(text=text, episode_done=True)))
    batch = agent.batchify(observations)

    model, decoder = agent.model, agent.model.decoder
    swaps = []
    reorder = model.reorder_decoder_incremental_state

    def watched(state, inds):
        swaps.append(inds.tolist() != list(range(len(inds))))
        return reorder(state, inds)

    def uncached(input, encoder_state, incr_state=None):
        ids = torch.cat([encoder_state, input[:, 1:]], dim=-1)
        seen = ids != agent.NULL_IDX
        hidden = decoder.transformer(
            ids.clamp(min=0), attention_mask=seen, position_ids=(seen.cumsum(-1) - 1).clamp(min=0), use_cache=False
        )[0]
        return hidden[:, -1:], ()

    def generate():
        with torch.no_grad():
            _, beams = agent._generate(batch, 3, 8)
        return [
            [(tokens.tolist(), float(score)) for tokens, score, *_ in beam.get_rescored_finished()] for beam in beams
        ]

    model.reorder_decoder_incremental_state = watched
    cached = generate()
    decoder.forward = uncached
    model.reorder_decoder_incremental_state = lambda state, inds: state
    return {"cached": cached, "anew": generate(), "swaps": sum(swaps)}


@scenario
def data_parallel_in_one_process():
    import torch
    from parlai.scripts.multiprocessing_train import MultiProcessTrain

    parallel_class = torch.nn.parallel.DistributedDataParallel
    valid, _ = MultiProcessTrain.main(
        task="demo:plain",
        model="transformer/generator",
        model_file="alone",
        dict_file="chatty.dict",
        num_epochs=1,
        batchsize=2,
        skip_generation=True,
        loglevel="error",
        distributed_world_size=1,
        **TINY,
    )
    return {
        "examples": int(valid["exs"]),
        "gpu": json.loads(Path("alone.opt").read_text())["gpu"],
        "torch as before": torch.nn.parallel.DistributedDataParallel is parallel_class,
    }


@scenario
def what_is_spawned():
    """The function that a worker process unpickles, and so the module that it imports."""
    from parlai.scripts import multiprocessing_eval, multiprocessing_train

    spawned = (multiprocessing_train.multiprocess_train, multiprocessing_eval.multiprocess_eval)
    return [f"{function.__module__}.{function.__qualname__}" for function in spawned]


@scenario
def states():
    return {row.name: row.state for row in compat.status()}


def main(out, *names):
    from parlai.core import loader

    compat.apply_all()
    compat.apply_all()
    loader.REGISTERED_REPOS["demo:"] = {"repo": "compat_demo", "source": "the tests"}
    outcomes = {}
    for function in SCENARIOS:
        if names and function.__name__ not in names:
            continue
        try:
            outcomes[function.__name__] = function()
        except BaseException as error:
            outcomes[function.__name__] = f"{type(error).__name__}: {error}"
    Path(out).write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

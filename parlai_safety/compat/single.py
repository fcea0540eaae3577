"""Repairs for ordinary, one-process use: training, evaluation, chat, options files.

Every function of ours that stands in for one of ParlAI keeps its name, its arguments and, where the original worked,
its result. Left out: ParlAI's presets themselves, which its wheel does not hold.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from parlai_safety.compat.base import Repair, rebind
from parlai_safety.errors import SafetyError, did_you_mean

PRESET_PREFIX = "safety/"
PRESETS = Path(__file__).parents[1] / "opt_presets"


# --- lr-scheduler: torch dropped ReduceLROnPlateau(verbose=...) ------------------------------------------------------


def _plateau_verbose_is_gone() -> bool:
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    return "verbose" not in inspect.signature(ReduceLROnPlateau).parameters


def _mend_plateau() -> None:
    from parlai.nn.lr_scheduler import ParlAILRScheduler, ReduceOnPlateauLRScheduler
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    def init(self: Any, optimizer: Any, patience: int, decay: float, warmup_updates: int, warmup_rate: float) -> None:
        ParlAILRScheduler.__init__(self, warmup_updates, warmup_rate)
        self.scheduler = ReduceLROnPlateau(optimizer, "min", factor=decay, patience=patience)

    ReduceOnPlateauLRScheduler.__init__ = init


# --- gpt2-cache: transformers 5 hands out Cache objects where it handed out tuples of tensors ------------------------


def _caches_are_objects() -> bool:
    return hasattr(getattr(sys.modules.get("transformers.cache_utils"), "Cache", None), "reorder_cache")


def _mend_gpt2_cache() -> None:
    from parlai.agents.hugging_face.gpt2 import HFGPT2Model

    original = HFGPT2Model.reorder_decoder_incremental_state

    @functools.wraps(original)
    def reorder(self: Any, incremental_state: Any, inds: Any) -> Any:
        if hasattr(incremental_state, "reorder_cache"):
            incremental_state.reorder_cache(inds)
            return incremental_state
        return original(self, incremental_state, inds)

    HFGPT2Model.reorder_decoder_incremental_state = reorder


# --- presets: pkg_resources cannot look into the namespace package parlai_internal -----------------------------------


class PresetNotFoundError(SafetyError, FileNotFoundError):
    """`-o` names neither a file nor a preset.

    It is a `FileNotFoundError` too, because ParlAI's parser passes over one while it does not know all options yet.
    """


def preset_folders(name: str) -> Iterator[Path]:
    """The folders that may hold the preset `name`, in the order of search; `safety/...` is looked up in ours only."""
    if not name.startswith(PRESET_PREFIX):
        yield Path.home() / ".parlai" / "opt_presets"
        for root in ("parlai", "parlai_internal", "parlai_fb"):
            spec = importlib.util.find_spec(root)
            for location in (spec and spec.submodule_search_locations) or ():
                yield Path(location) / "opt_presets"
    yield PRESETS


def find_preset(name: str) -> Path:
    """The file of the preset `name`, as in `gen/meena` or `safety/cringe`.

    Raises:
        PresetNotFoundError: there is none; the message names near or all known presets.
    """
    folders = list(preset_folders(name))
    for folder in folders:
        path = folder / f"{name.removeprefix(PRESET_PREFIX)}.opt"
        if path.is_file():
            return path
    known = sorted(
        {str(path.relative_to(folder).with_suffix("")) for folder in folders for path in folder.rglob("*.opt")}
    )
    raise PresetNotFoundError(
        f"There is no options file or preset {name!r}",
        "A preset is a file NAME.opt in ~/.parlai/opt_presets, in parlai_safety, in parlai_internal or in parlai, "
        "and the released ParlAI holds none of its own",
        did_you_mean(
            name.removeprefix(PRESET_PREFIX),
            known,
            f"Known presets: {', '.join(known)}" if known else "Give the path of an .opt file instead",
        ),
    )


def _presets_use_pkg_resources() -> bool:
    from parlai.core.opt import Opt

    return "pkg_resources" in Opt.load_init.__func__.__code__.co_names


def _mend_presets() -> None:
    from parlai.core.opt import Opt
    from parlai.utils.io import PathManager

    original = Opt.load_init.__func__

    @functools.wraps(original)
    def load_init(cls: Any, optfile: str) -> Any:
        # ParlAI splits a list at its commas, and comes back here with each part.
        if "," in optfile or PathManager.exists(optfile):
            return original(cls, optfile)
        return cls.load(str(find_preset(optfile)))

    Opt.load_init = classmethod(load_init)


# --- worlds: only `internal:` tasks are looked up in their own package, and chat without a world of its own fails ----


def _dotted(task: str) -> str:
    """A registered repository's task by its module path: `safety:bad:x` becomes `parlai_safety.tasks.bad.agents:x`."""
    from parlai.core.loader import assert_get_source_repo

    repo, path = assert_get_source_repo(task.strip())
    name, colon, rest = path.partition(":")
    if repo == "parlai" or "." in name:
        return task
    return f"{repo}.tasks.{name.lower()}.agents{colon}{rest}"


def _worlds_know_no_repositories() -> bool:
    from parlai.core.loader import load_world_module

    return "assert_get_source_repo" not in load_world_module.__code__.co_names


def _mend_worlds() -> None:
    from parlai.core import loader

    original = loader.load_world_module

    @functools.wraps(original)
    def load_world_module(
        taskname: str,
        interactive_task: bool = False,
        selfchat_task: bool = False,
        num_agents: int | None = None,
        default_world: Any = None,
    ) -> Any:
        own = original(_dotted(taskname), interactive_task, selfchat_task)
        if own is not None:
            return own
        # ParlAI's next choice is the world of a teacher and a model. Two models there wait for each other's first
        # word, and a person's [DONE] is an unhandled StopIteration.
        if default_world is None and interactive_task:
            from parlai.tasks.interactive.worlds import InteractiveWorld

            return InteractiveWorld
        if default_world is None and selfchat_task:
            from parlai.tasks.self_chat.worlds import SelfChatWorld

            return SelfChatWorld
        return loader._get_default_world(default_world, num_agents)

    rebind(original, load_world_module)


# --- openers: --seed-messages-from-task cuts `safety:bad` down to `safety` -------------------------------------------


def _mend_openers() -> None:
    import copy

    from parlai.agents.fixed_response.fixed_response import FixedResponseAgent
    from parlai.core.worlds import create_task
    from parlai.tasks.self_chat import worlds

    original = worlds.load_openers

    @functools.wraps(original)
    def load_openers(opt: Any) -> Any:
        if _dotted(opt["task"]) == opt["task"] or opt["task"].startswith(("internal:", "fb:")):
            return original(opt)
        opt = copy.deepcopy(opt)
        opt.update(interactive_task=False, selfchat_task=False, fixed_response=None)
        if "train" in opt["datatype"] and "evalmode" not in opt["datatype"]:
            opt["datatype"] += ":evalmode"
        world = create_task(opt, FixedResponseAgent(opt))
        openers: dict[str, None] = {}
        opens = True
        while not world.epoch_done():
            world.parley()
            act = world.get_acts()[0]
            if opens and act.get("text"):
                openers[act["text"]] = None
            opens = act.get("episode_done", False)
        return list(openers)

    rebind(original, load_openers)


def _openers_know_no_repositories() -> bool:
    from parlai.tasks.self_chat.worlds import load_openers

    return "assert_get_source_repo" not in load_openers.__code__.co_names


# --- train-loop-early-stop: a stop in the very first step leaves the loop without its counter -------------------------


def _epochs_come_late() -> bool:
    from parlai.scripts.train_model import TrainLoop

    return "_total_epochs" not in TrainLoop.__init__.__code__.co_names


def _mend_epochs() -> None:
    from parlai.scripts.train_model import TrainLoop

    original = TrainLoop.__init__

    @functools.wraps(original)
    def init(self: Any, opt: Any) -> None:
        original(self, opt)
        # What a resumed run had done before; the first step overwrites it.
        self._total_epochs = self._preempted_epochs

    TrainLoop.__init__ = init


# --- resumed-evaluation: after a resume, the closing evaluation loads the checkpoint and not the model just saved -----


def _checkpoint_is_kept() -> bool:
    from parlai.scripts.train_model import TrainLoop

    return ".checkpoint" in inspect.unwrap(TrainLoop.__init__).__code__.co_consts


def _mend_resumed_evaluation() -> None:
    from parlai.scripts.train_model import TrainLoop

    original = TrainLoop.__init__

    @functools.wraps(original)
    def init(self: Any, opt: Any) -> None:
        original(self, opt)
        # The agent is built by now. What the loop builds at its end is to be the model that it has just saved.
        if opt.get("model_file") and opt.get("init_model") == f"{opt['model_file']}.checkpoint":
            self.opt["init_model"] = opt["model_file"]

    TrainLoop.__init__ = init


# --- byte-bpe: decoding asserts that every text begins with a space --------------------------------------------------


def _bpe_asserts_space() -> bool:
    from parlai.utils.bpe import BPEHelper

    # An untrained model's first token may begin a text without the space that the encoder always puts there.
    probe = SimpleNamespace(debug=False, _special_tokens={}, add_prefix_space=True, helper_decode=lambda *_: "a")
    try:
        return bool(BPEHelper.decode(probe, ["a"], [0], " ") != "a")
    except AssertionError:
        return True


def _mend_bpe() -> None:
    from parlai.utils.bpe import BPEHelper

    original = BPEHelper.decode

    @functools.wraps(original)
    def decode(self: Any, tokens: list[str], token_ids: list[int], delimiter: str = " ") -> str:
        if self.debug:
            return delimiter.join(tokens)
        # Special tokens stand for themselves; only what follows the last of them loses its leading spaces.
        parts: list[str] = []
        start = 0
        for at, token in enumerate(tokens):
            if token in self._special_tokens:
                parts += [self.helper_decode(tokens[start:at], token_ids[start:at], delimiter), token]
                start = at + 1
        last: str = self.helper_decode(tokens[start:], token_ids[start:], delimiter)
        return "".join(parts) + (last.lstrip(" ") if self.add_prefix_space else last)

    BPEHelper.decode = decode


# --- numpy-int: numpy 1.24 dropped np.int ----------------------------------------------------------------------------


def _numpy_int_is_gone() -> bool:
    import numpy

    return "int" not in vars(numpy)


def _mend_txt2vec() -> None:
    import numpy
    from parlai.core.dict import DictionaryAgent

    original = DictionaryAgent.txt2vec

    @functools.wraps(original)
    def txt2vec(self: Any, text: str, vec_type: Callable[..., Any] = list) -> Any:
        if vec_type is numpy.ndarray:
            return numpy.array(original(self, text), dtype=int)
        return original(self, text, vec_type)

    DictionaryAgent.txt2vec = txt2vec


REPAIRS = (
    Repair(
        name="lr-scheduler",
        symptom="Training with the default --lr-scheduler: TypeError, unexpected keyword argument 'verbose'.",
        where="parlai/nn/lr_scheduler.py:ReduceOnPlateauLRScheduler.__init__",
        lazy="parlai.nn.lr_scheduler",
        needed=_plateau_verbose_is_gone,
        apply=_mend_plateau,
    ),
    Repair(
        name="gpt2-cache",
        symptom="Generation with hugging_face/gpt2 or dialogpt: TypeError, expected Tensor, got NoneType.",
        where="parlai/agents/hugging_face/gpt2.py:HFGPT2Model.reorder_decoder_incremental_state",
        lazy="parlai.agents.hugging_face.gpt2",
        needed=_caches_are_objects,
        apply=_mend_gpt2_cache,
    ),
    Repair(
        name="presets",
        symptom="-o NAME finds no preset of parlai_safety, and a missing one is a TypeError on NoneType.",
        where="parlai/core/opt.py:Opt.load_init",
        lazy="parlai.core.opt",
        needed=_presets_use_pkg_resources,
        apply=_mend_presets,
    ),
    Repair(
        name="worlds",
        symptom="Worlds of safety: tasks are not found; self_chat -t TASK: AttributeError, NoneType has no is_padding.",
        where="parlai/core/loader.py:load_world_module",
        lazy="parlai.core.loader",
        needed=_worlds_know_no_repositories,
        apply=_mend_worlds,
    ),
    Repair(
        name="openers",
        symptom="self_chat -t safety:TASK --seed-messages-from-task: ModuleNotFoundError, parlai.tasks.safety.",
        where="parlai/tasks/self_chat/worlds.py:load_openers",
        lazy="parlai.tasks.self_chat.worlds",
        needed=_openers_know_no_repositories,
        apply=_mend_openers,
    ),
    Repair(
        name="train-loop-early-stop",
        symptom="A stop in the first step: AttributeError, no attribute '_total_epochs', and a cut-off .trainstats.",
        where="parlai/scripts/train_model.py:TrainLoop._save_train_stats",
        lazy="parlai.scripts.train_model",
        needed=_epochs_come_late,
        apply=_mend_epochs,
    ),
    Repair(
        name="resumed-evaluation",
        symptom="The closing evaluation of a resumed training is that of the checkpoint, not of the trained model.",
        where="parlai/scripts/train_model.py:TrainLoop.train_steps",
        lazy="parlai.scripts.train_model",
        needed=_checkpoint_is_kept,
        apply=_mend_resumed_evaluation,
    ),
    Repair(
        name="byte-bpe",
        symptom="--dict-tokenizer bytelevelbpe: AssertionError when a young model's text begins without a space.",
        where="parlai/utils/bpe.py:BPEHelper.decode",
        lazy="parlai.utils.bpe",
        needed=_bpe_asserts_space,
        apply=_mend_bpe,
    ),
    Repair(
        name="numpy-int",
        symptom="DictionaryAgent.txt2vec(text, numpy.ndarray): AttributeError, numpy has no attribute 'int'.",
        where="parlai/core/dict.py:DictionaryAgent.txt2vec",
        lazy="parlai.core.dict",
        needed=_numpy_int_is_gone,
        apply=_mend_txt2vec,
    ),
)

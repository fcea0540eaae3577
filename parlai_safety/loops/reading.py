"""Any ParlAI task read once, in its order: what the jobs share that look at data instead of training on them."""

from __future__ import annotations

from parlai.core.agents import create_agent
from parlai.core.opt import Opt
from parlai.core.worlds import World, create_task


def worlds(opt: Opt) -> list[World]:
    """A world of ParlAI for each task of an opt, which goes once through the split.

    Args:
        opt: with `task`, several joined by commas, `datatype` and the options of these tasks; mutators are applied.
    """
    split, found = split_named(opt), []
    for task in str(opt["task"]).split(","):
        shown = {"task": task, "datatype": "train:evalmode" if split == "train" else split, "batchsize": 1}
        reader = Opt({**opt, **shown, "model": "repeat_label", "model_file": None, "override": {}})
        found.append(create_task(reader, create_agent(reader)))
    return found


def split_named(opt: Opt) -> str:
    """The split that an opt names: train, valid or test."""
    return str(opt["datatype"]).split(":")[0]

"""What every agent of ours does beside its method: persist its dotted path, and refuse a checkpoint it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parlai.core.dict import DictionaryAgent, escape
from parlai.core.loader import load_agent_module
from parlai.core.opt import Opt

from parlai_safety import compat
from parlai_safety.errors import SafetyError


class SafetyAgentMixin:
    """Put this before a ParlAI agent class; the subclass names that class as `backbone`.

    The `.opt` beside a saved model holds this agent's dotted path and not the short name `safety:...`: plain Python
    can load the model with `create_agent_from_model_file`, in a process that never called our hook.
    """

    backbone: type[Any]

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        if shared is None:
            compat.apply_all()  # plain Python may load a model of ours without our hook
            check_checkpoint(opt, type(self), self.backbone)
        super().__init__(opt, shared)  # type: ignore[call-arg]
        self.opt["model"] = dotted_path(type(self))

    def save(self, path: str | None = None) -> None:
        """ParlAI's, with the dictionary that the model has.

        A training from `--init-model` takes that model's dictionary, while ParlAI has left one of the task's words
        under the new model's name, with which the model could not be loaded again.
        """
        path = path or self.opt.get("model_file")
        if path and self.opt.get("dict_file") not in (None, f"{path}.dict") and _differs(self.dict, f"{path}.dict"):
            self.dict.save(f"{path}.dict", sort=False)
        super().save(path)  # type: ignore[misc]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load model parameters; sizes that differ from the options end in our error.

        Raises:
            SafetyError: the parameters have other names or shapes than this model.
        """
        try:
            super().load_state_dict(state_dict)  # type: ignore[misc]
        except RuntimeError as error:
            first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
            raise SafetyError(
                f"The checkpoint does not fit the model that the options describe ({first[:160]})",
                "Parameters can only be loaded into layers of the same names and sizes, over the same dictionary",
                "Beside --init-model MODEL give -o MODEL.opt --dict-file MODEL.dict, so that its own sizes are used",
            ) from error

    opt: Opt
    dict: Any


def _differs(dictionary: Any, path: str) -> bool:
    """Whether a file of ParlAI's holds the words of another dictionary."""
    if not Path(path).is_file() or not isinstance(dictionary, DictionaryAgent) or dictionary.is_prebuilt():
        return False
    with open(path, encoding="utf-8", errors="ignore") as stream:
        words = [line.rstrip("\r\n").split("\t")[0] for line in stream]
    return words != [escape(word) for word in dictionary.ind2tok.values()]


def dotted_path(agent: type[Any]) -> str:
    """The name under which ParlAI's loader finds a class without any registry: `package.module:Class`."""
    return f"{agent.__module__}:{agent.__qualname__}"


def check_checkpoint(opt: Opt, agent: type[Any], backbone: type[Any]) -> None:
    """Refuse to continue from, and so later to overwrite, a checkpoint of an unrelated agent.

    Args:
        opt: the options; `model_file` and `init_model` are looked at.
        agent: the class that wants to load it; only its own checkpoints may lie under `model_file`, which is where it
            will save.
        backbone: the ParlAI class whose parameters it shares, and whose checkpoints it may start from.

    Raises:
        SafetyError: the checkpoint belongs to another agent, or its `.opt` file cannot be read.
    """
    for key in ("model_file", "init_model"):
        path = opt.get(key)
        if not path or not Path(path).is_file():
            continue
        flag = "--" + key.replace("_", "-")
        saved = _saved_agent(path, flag)
        try:
            known = load_agent_module(saved)
        except (ImportError, AttributeError, KeyError):
            known = None
        wanted = agent if key == "model_file" else backbone
        if not isinstance(known, type) or not issubclass(known, wanted):
            raise SafetyError(
                f"{flag} {path} holds a checkpoint of the agent {saved!r}",
                f"{agent.__name__} saves to its --model-file and would overwrite another agent's model there; it can "
                f"start from a {backbone.__name__} or an agent built on it",
                "Give a --model-file that does not exist yet, and --init-model with a checkpoint of the right kind",
            )


def _saved_agent(path: str, flag: str) -> str:
    opt_file = Path(f"{path}.opt")
    try:
        saved = json.loads(opt_file.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SafetyError(
            f"{flag} {path} exists, but {opt_file.name} beside it does not say which agent saved it",
            "A checkpoint without its options cannot be told from another agent's, and must not be overwritten",
            "Give a --model-file that does not exist yet, or put the .opt file back",
        ) from error
    return str(saved)

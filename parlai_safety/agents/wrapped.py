"""What agents share that stand before another ParlAI agent: they have nothing to learn, and ask it for all but replies.

Left out: how the agent inside is loaded and what becomes of its replies, which is what each of them is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parlai.core.agents import Agent, create_agent_from_shared
from parlai.core.message import Message
from parlai.core.opt import Opt

from parlai_safety.agents.common import SafetyAgentMixin
from parlai_safety.errors import SafetyError
from parlai_safety.options import flag, options_from


class WrappedAgent(SafetyAgentMixin, Agent):
    """An agent around another, `self.base`.

    What is not defined here is asked of the agent inside: metrics, dictionary, history, model.
    """

    backbone = Agent
    options_class: type[Any]
    """The dataclass of the agent's options, read into `self.settings`."""
    title = ""
    """Of its group of flags."""
    model_option = "base_model"
    """The option that names the agent inside."""
    purpose = ""
    """What it does to the agent inside, in a few words, for an error."""

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self.id = type(self).__name__.removesuffix("Agent")
        self.name = f"safety:{type(self).__module__.rpartition('.')[2]}"
        self.settings = options_from(opt, self.options_class)
        if shared is None and opt.get("model_file"):
            raise self._no_training()
        super().__init__(opt, shared)
        if shared is None:
            self.base = self.load_base()
            self.resources = self.load_resources()
        else:
            self.base, self.resources = create_agent_from_shared(shared["base"]), shared["resources"]

    def load_base(self) -> Any:
        """The agent inside.

        Raises:
            SafetyError: it is missing, or cannot be wrapped.
        """
        raise NotImplementedError(type(self).__name__)

    def load_resources(self) -> Any:
        """What copies of the agent share, such as a judge; loaded once."""
        return None

    def base_options(self) -> dict[str, Any]:
        """ParlAI options with which the agent inside is loaded: what the user typed, and what inference needs."""
        own = {*self.options_class.__dataclass_fields__, "model", "model_file", "override"}
        typed = {key: value for key, value in (self.opt.get("override") or {}).items() if key not in own}
        fixed = {key: bool(self.opt.get(key, False)) for key in ("skip_generation", "interactive_mode")}
        where = {"datapath": self.opt["datapath"]} if self.opt.get("datapath") else {}
        return {**typed, **fixed, **where, "datatype": "valid"}

    def share(self) -> dict[str, Any]:
        """ParlAI's share, with that of the agent inside and what copies have in common."""
        return {**super().share(), "base": self.base.share(), "resources": self.resources}

    def batch_act(self, observations: Sequence[Mapping[str, Any]]) -> list[Message]:
        """Acts for what copies of the agent observed."""
        raise NotImplementedError(type(self).__name__)

    def act(self) -> Message:
        """Reply to what was observed, and remember the reply."""
        reply = self.batch_act([self.observation])[0]
        self.self_observe(reply)
        return reply

    def self_observe(self, self_message: Mapping[str, Any] | None) -> None:
        """Let the agent inside remember what was said; a reply that was withheld is not in the conversation."""
        observed = self.base.observation or {}
        message = dict(self_message or {})
        if "text" in message or observed.get("episode_done") or "eval_labels" in observed:
            self.base.self_observe(Message({"text": "", **message}))

    def reset(self) -> None:
        """Forget the conversation."""
        super().reset()
        self.base.reset()

    def reset_metrics(self) -> None:
        """Reset the metrics of the agent inside."""
        self.base.reset_metrics()

    @property
    def skip_generation(self) -> bool:
        """Whether losses alone are computed, and no replies."""
        return bool(self.base.skip_generation)

    @skip_generation.setter
    def skip_generation(self, skip: bool) -> None:
        self.base.skip_generation = skip

    @skip_generation.deleter
    def skip_generation(self) -> None:
        del self.base.skip_generation

    def __getattr__(self, name: str) -> Any:
        # Not there yet; a model file of its own, for whose lack ParlAI would warn; or a question about this class.
        if name in ("base", "load") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.base, name)

    def _no_training(self) -> SafetyError:
        return SafetyError(
            f"{self.name} was given a model file of its own, or an example to train on",
            f"It {self.purpose} a model that is trained already, and has nothing to learn or to save",
            f"Train the model by itself, then name its file with {flag(self.model_option)} and leave -mf out",
        )

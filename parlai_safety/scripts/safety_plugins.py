"""`parlai safety_plugins`: what parlai_safety adds to ParlAI."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import say


@register_script("safety_plugins")
class SafetyPlugins(ParlaiScript):
    """List our agents, tasks, mutators, judges and commands, one line each."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """No options."""
        return ParlaiParser(False, False, "List the agents, tasks, mutators, judges and commands of parlai_safety")

    def run(self) -> None:
        """Print the list."""
        from parlai_safety.inventory import everything

        for kind, items in everything().items():
            say(f"{kind} ({len(items)})")
            width = max((len(item.name) for item in items), default=0)
            for item in items:
                say(f"  {item.name:<{width}}  {item.line}")
            say("")

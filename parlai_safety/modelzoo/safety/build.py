"""Where ParlAI ends when a model's name is not in the registry."""

from __future__ import annotations

from parlai_safety import zoo
from parlai_safety.errors import SafetyError


def download(datapath: str) -> None:
    """Tell which names there are.

    Raises:
        SafetyError: always.
    """
    known = ", ".join(sorted(zoo.registry()))
    raise SafetyError(
        "zoo:safety/ was given a name that is not in the registry",
        f"The registry lists {known or 'no model yet'}",
        "Name one of these, or train a model as the README shows and give its --model-file",
    )

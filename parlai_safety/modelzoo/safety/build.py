"""Where ParlAI ends with `zoo:safety/NAME`: a model without its file."""

from __future__ import annotations

from parlai_safety import zoo
from parlai_safety.errors import SafetyError


def download(datapath: str) -> None:
    """Tell how a model is named.

    Raises:
        SafetyError: always.
    """
    paths = [entry.zoo_path for entry in zoo.registry().values() if entry.kind != "judge"]
    raise SafetyError(
        "A model file was named as zoo:safety/NAME, without its last part",
        "ParlAI takes a file, zoo:safety/NAME/model, and the name of the model alone is for judges",
        f"Type one of {', '.join(paths)}" if paths else "Type parlai safety_zoo list, which tells what there is",
    )

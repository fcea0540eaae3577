"""`parlai safety_doctor`: in one screen, what is installed, registered, repaired, missing and found."""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata
from pathlib import Path

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.inventory import import_all
from parlai_safety.scripts.common import say

_VERSIONS = ("parlai_safety", "parlai", "torch", "numpy", "scikit-learn", "setuptools")
# extra -> (a module that it brings, what it is for)
_OPTIONAL = {
    "hf": ("peft", "Hugging Face models and adapters"),
    "crowd": ("mephisto", "Mechanical Turk and Prolific"),
    "trl": ("trl", "training with TRL and accelerate"),
    "fairseq": ("fairseq", "our criterions in fairseq-train (the import of checkpoints needs nothing)"),
    "scale": ("datatrove", "annotating large corpora"),
}


@register_script("safety_doctor")
class SafetyDoctor(ParlaiScript):
    """Tell versions, registrations, repairs, missing optional parts, data and GPU."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """One option, the folder of real data."""
        parser = ParlaiParser(False, False, "Check versions, registration, optional parts, data and GPU")
        parser.add_argument("--safety-datapath", type=str, default=None, help="Folder of real data to look into.")
        return parser

    def run(self) -> None:
        """Print the screen."""
        import torch
        from parlai.core.loader import REGISTERED_REPOS

        from parlai_safety import compat
        from parlai_safety.inventory import everything
        from parlai_safety.tasks.common import data_folder

        say("parlai_safety doctor\n")
        versions = ", ".join(f"{name} {_version(name)}" for name in _VERSIONS)
        say(f"versions    python {platform.python_version()}, {versions}")
        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none (training runs on the CPU)"
        say(f"GPU         {gpu}")
        registered = REGISTERED_REPOS.get("safety:", {}).get("repo") == "parlai_safety"
        counts = ", ".join(f"{len(items)} {kind}" for kind, items in everything().items())
        say(f"registered  {counts if registered else 'NOT registered: type python -m parlai_safety instead of parlai'}")
        say(f"hook        {_hook()}")
        say("\nrepairs of ParlAI 1.7.2 (archived): what a user would see without them")
        for status in compat.status():
            state = "waits" if status.state.startswith("waiting") else status.state
            say(f"  {status.name:<22} {state:<10} {status.symptom}")
        say("  (a repair that waits is applied when ParlAI imports the module that it is for)")
        say("\noptional parts")
        for extra, (module, purpose) in _OPTIONAL.items():
            found = importlib.util.find_spec(module) is not None
            state = "installed" if found else f"missing    pip install '.[{extra}]' in the clone"
            say(f"  {extra:<8} {purpose:<34} {state}")
        say("\ndata")
        for line in _data(data_folder(self.opt)):
            say(f"  {line}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _hook() -> str:
    spec = importlib.util.find_spec("parlai_internal")
    if spec is None:
        return "no namespace parlai_internal: install this package (pip install -e . in a clone)"
    if spec.origin is not None:
        return (
            "shadowed by your own regular package parlai_internal; add to its __init__.py and scripts/__init__.py: "
            '__path__ = __import__("pkgutil").extend_path(__path__, __name__)'
        )
    try:
        # What ParlAI does when it starts, where it drops any ImportError in silence.
        import_all("parlai_internal.scripts")
    except ImportError as error:
        return f"plain `parlai` does NOT know us: a module of your parlai_internal.scripts does not import ({error})"
    return "plain `parlai` knows us through the namespace parlai_internal"


def _data(folder: str | None) -> list[str]:
    from parlai_safety.corpus.load import SPLITS, load_adversarial, load_ordinary

    ordinary = sum(len(load_ordinary(split)) for split in SPLITS)
    adversarial = sum(len(load_adversarial(split)) for split in SPLITS)
    lines = [f"ships: safety:tiny, {ordinary} ordinary dialogues and {adversarial} adversarial exchanges"]
    if not folder:
        return [*lines, "real data: none named; set SAFETY_DATA or give --safety-datapath"]
    files = sorted(path.name for path in Path(folder).glob("*.jsonl.gz"))
    return [*lines, f"real data in {folder}: {', '.join(files) or 'no *.jsonl.gz file'}"]

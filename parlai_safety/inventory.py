"""What this package registers: agents, tasks with their views, mutators, judges and commands, one line each.

The listing is found by walking the packages, not kept by hand, so a new module appears by being there. The lines are
the first sentences of docstrings.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any, NamedTuple


class Item(NamedTuple):
    """One registered thing: how a user types it, and one line about it."""

    name: str
    line: str


def agents() -> list[Item]:
    """`-m` names: `safety:cringe` for the agent that a folder is named after, `safety:folder/file` for its variants."""
    found = []
    for folder, module in _modules("parlai_safety.agents"):
        variant = module.__name__.rsplit(".", 1)[1]
        name = f"safety:{folder}" if variant == folder else f"safety:{folder}/{variant}"
        wanted = "".join(word.capitalize() for word in variant.split("_")) + "Agent"
        if hasattr(module, wanted):
            found.append(Item(f"-m {name}", _line(module)))
    return sorted(found)


def tasks() -> list[Item]:
    """`-t` names with their views."""
    found = []
    for folder, module in _modules("parlai_safety.tasks"):
        if not module.__name__.endswith(".agents"):
            continue
        for name, teacher in inspect.getmembers(module, inspect.isclass):
            if name.endswith("Teacher") and teacher.__module__ == module.__name__:
                view = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Teacher")).lower()
                suffix = "" if view == "default" else f":{view}"
                found.append(Item(f"-t safety:{folder}{suffix}", _line(teacher)))
    return sorted(found)


def mutators() -> list[Item]:
    """`--mutators` names."""
    from parlai.core.mutators import MUTATOR_REGISTRY

    import_all("parlai_safety.mutators")
    ours = {name: kind for name, kind in MUTATOR_REGISTRY.items() if kind.__module__.startswith("parlai_safety.")}
    return [Item(f"--mutators {name}", _line(kind)) for name, kind in sorted(ours.items())]


def judges() -> list[Item]:
    """`--judge` specifications."""
    from parlai_safety.judges.spec import known_judges

    return [Item(form, line) for form, line in known_judges().items()]


def commands() -> list[Item]:
    """`parlai` commands."""
    from parlai.core.loader import SCRIPT_REGISTRY

    import_all("parlai_safety.scripts")
    ours = {n: r.klass for n, r in SCRIPT_REGISTRY.items() if r.klass.__module__.startswith("parlai_safety.")}
    return [Item(f"parlai {name}", _line(script)) for name, script in sorted(ours.items())]


def everything() -> dict[str, list[Item]]:
    """All of them, by kind."""
    return {
        "agents": agents(),
        "tasks": tasks(),
        "mutators": mutators(),
        "judges": judges(),
        "commands": commands(),
    }


def import_all(package: str) -> None:
    """Import every module of a package or namespace, so that what it registers is registered."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)


def _modules(package: str) -> list[tuple[str, ModuleType]]:
    found = []
    for folder in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if folder.ispkg:
            name = f"{package}.{folder.name}"
            for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
                found.append((folder.name, importlib.import_module(f"{name}.{module.name}")))
    return found


def _line(thing: Any) -> str:
    line = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")
    # A module's docstring begins with the name under which it is used, which stands before it in the list already.
    return line.partition("`: ")[2] if line.startswith("`") and "`: " in line else line

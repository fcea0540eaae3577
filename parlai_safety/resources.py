"""One accessor for the data folders that ship: `projects/` (recipes, results) and `zoo/` (registry, cards).

In an installed package they lie inside `parlai_safety`; in a clone they lie at the top level. They are data, not
packages: an `__init__.py` in `projects/` would shadow the top-level package of that name which ParlAI installs.
"""

from __future__ import annotations

import os
from pathlib import Path

from parlai_safety.errors import SafetyError, did_you_mean

_PACKAGE = Path(__file__).parent
_FOLDERS = {"projects": _PACKAGE / "_projects", "zoo": _PACKAGE / "_zoo"}


def folder(name: str) -> Path:
    """The folder `projects` or `zoo`: the packaged copy first, then the clone's."""
    packaged = _FOLDERS[name]
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def recipe(name: str) -> Path:
    """A recipe file by path, or by its name under `projects/`, as in `cringe/demo`.

    Raises:
        SafetyError: there is no such file; near names are suggested.
    """
    direct = Path(name)
    if direct.is_file():
        return direct
    shipped = folder("projects") / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    known = [str(p.relative_to(folder("projects")).with_suffix("")) for p in folder("projects").rglob("*.yaml")]
    raise SafetyError(
        f"--recipe got {name!r}",
        "There is neither a file of that name nor a shipped recipe",
        did_you_mean(name, known, f"The shipped recipes are: {', '.join(sorted(known))}"),
    )


def cache_folder() -> Path:
    """Where what can be made again is kept: SAFETY_CACHE, or `parlai_safety` in the user's cache folder."""
    named = os.environ.get("SAFETY_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parlai_safety"

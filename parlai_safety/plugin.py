"""The one module that touches ParlAI's registries.

`register()` makes `-m safety:<agent>`, `-t safety:<task>`, `--mutators safety_<name>`, `-mf zoo:safety/<name>` and
`parlai safety_<command>` known. It is idempotent, and it imports nothing that ParlAI's own start does not.
Nothing imports this module but the hook in the namespace `parlai_internal`, our own command line, spawned training
processes and the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

from parlai_safety import compat, inventory
from parlai_safety.errors import SafetyError, did_you_mean

PREFIX = "safety:"
_done: set[str] = set()


def register(*, commands: bool = False) -> None:
    """Make this package known to ParlAI; a second call does nothing.

    Args:
        commands: also register `parlai safety_<command>` and print our errors without a traceback. Only a command
            line asks for it.

    Raises:
        SafetyError: ParlAI itself is not installed.
    """
    if commands:
        sys.excepthook = _print_without_traceback
    if "repo" not in _done:
        try:
            from parlai.core.loader import REGISTERED_REPOS
        except ModuleNotFoundError as error:
            if error.name and error.name.split(".")[0] == "parlai":
                raise SafetyError(
                    "The package parlai is not installed",
                    "parlai_safety is a plugin for ParlAI, whose own pins forbid installing both in one step",
                    "Install it beside us with: pip install --no-deps parlai==1.7.2",
                ) from error
            raise
        REGISTERED_REPOS.setdefault(
            PREFIX, {"repo": "parlai_safety", "source": "the clone of parlai_safety, with pip install ."}
        )
        import parlai.zoo

        parlai.zoo.__path__.append(str(Path(__file__).parent / "modelzoo"))
        compat.apply_all()
        _done.add("repo")
    if commands and "commands" not in _done:
        inventory.import_all("parlai_safety.scripts")
        register_mutators()  # ParlAI looks for mutators in a namespace that a user's own package may hide
        _done.add("commands")


def register_mutators() -> None:
    """Import the modules that hold our `@register_mutator` classes; a second call does nothing."""
    if "mutators" not in _done:
        inventory.import_all("parlai_safety.mutators")
        _done.add("mutators")


def _print_without_traceback(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    clear = error if isinstance(error, SafetyError) else _unknown_name(error)
    if clear is not None:
        sys.stderr.write(f"\n{clear}\n")
    else:
        sys.__excepthook__(kind, error, traceback)


def _unknown_name(error: BaseException) -> SafetyError | None:
    """ParlAI tells an unknown `safety:` name as a module that is not found, a level or two below what was typed."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    for option, package, listing in (
        ("-m", "parlai_safety.agents", inventory.agents),
        ("-t", "parlai_safety.tasks", inventory.tasks),
    ):
        if error.name.startswith(package + "."):
            typed = f"{PREFIX}{error.name.removeprefix(package + '.').split('.')[0]}"
            known = [item.name.removeprefix(f"{option} ") for item in listing()]
            return SafetyError(
                f"{option} got {typed!r}",
                "parlai_safety has nothing of that name",
                did_you_mean(typed, known, f"It has: {', '.join(known)}"),
            )
    for package, what, flag in (("parlai.agents", "agent", "-m"), ("parlai.tasks", "task", "-t")):
        if error.name.startswith(package + "."):
            name = error.name.removeprefix(package + ".").split(".")[0]
            return SafetyError(
                f"ParlAI has no {what} called {name!r}",
                f"A name after {flag} without a prefix is one of ParlAI's own, and ours begin with {PREFIX!r}",
                "Check the spelling; `parlai safety_plugins` lists ours, and the folder of that name in ParlAI its own",
            )
    return None

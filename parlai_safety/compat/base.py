"""What a repair is, and the two tools that repairs share: rebinding a function everywhere, and waiting for a module.

A module of ParlAI that nobody has imported yet must not be imported for the repair's sake: start-up would pay for a
feature that the command may never use. Such a repair waits, and is applied right after the module's own code has run.
It leaves out reloading: after `importlib.reload` a module is as ParlAI wrote it.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Repair:
    """One defect of ParlAI 1.7.2 on today's libraries, and its cure at run time.

    Attributes:
        name: how the doctor and `PARLAI_SAFETY_SKIP_REPAIRS` call it.
        symptom: what a user sees without it, in one line.
        where: the place in ParlAI, as `file:function`.
        lazy: the module of ParlAI after whose import the repair is checked and applied.
        needed: whether this environment has the defect. Cheap, and called only once `lazy` is imported.
        apply: the cure. Called at most once, only once `lazy` is imported.
    """

    name: str
    symptom: str
    where: str
    lazy: str
    needed: Callable[[], bool]
    apply: Callable[[], None]


def rebind(original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Put `replacement` where any imported module of ParlAI holds `original` under its own name.

    ParlAI writes `from x import f` nearly everywhere, so changing `x.f` alone would reach later importers only.
    """
    name = original.__name__
    for path, module in list(sys.modules.items()):
        if path.startswith(("parlai.", "projects.")) and getattr(module, "__dict__", {}).get(name) is original:
            setattr(module, name, replacement)


def after_import(module: str, callback: Callable[[], None]) -> None:
    """Call `callback` as soon as `module` is imported: now, if it is, else right after its code has run."""
    if sys.modules.get(module) is not None:
        callback()
        return
    _WATCHER.waiting.setdefault(module, []).append(callback)
    if _WATCHER not in sys.meta_path:
        sys.meta_path.insert(0, _WATCHER)


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds the awaited modules through the other finders, and wraps their loader for the one import.

    It leaves `sys.meta_path` when nothing is awaited any more.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callable[[], None]]] = {}
        self._searching: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting or fullname in self._searching:
            return None
        # Another package's finder may ask the whole path again, as we do: answer it with None.
        self._searching.add(fullname)
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = find(fullname, path, target) if find and finder is not self else None
                if spec is not None:
                    break
            else:
                return None
        finally:
            self._searching.discard(fullname)
        if spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec

    def done(self, module: str) -> None:
        for callback in self.waiting.pop(module, []):
            callback()
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _Loader(importlib.abc.Loader):
    """A module's own loader, plus the callbacks; the module keeps no trace of the wrapper."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._inner.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        _WATCHER.done(module.__name__)


_WATCHER = _Watcher()

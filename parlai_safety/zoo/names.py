"""The modules `parlai.zoo.safety.NAME` that ParlAI imports for `zoo:safety/NAME/FILE`, one for whatever name is asked.

A name that the registry lists brings its model; any other is told which names there are, since ParlAI's own answer
would not name it. Left out: folders below a model's, which ParlAI looks for in modules of their own.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from parlai_safety.zoo.store import download

PACKAGE = "parlai.zoo.safety"


class Names(MetaPathFinder, Loader):
    """Finds a module for every name that has no file of its own in the package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        return ModuleSpec(fullname, self) if fullname.rpartition(".")[0] == PACKAGE else None

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its `download(datapath)`."""
        name = module.__name__.rpartition(".")[2]
        module.download = functools.partial(download, name)  # type: ignore[attr-defined]


_NAMES = Names()


def serve_names() -> None:
    """Let Python ask here, after it has looked for a file."""
    if _NAMES not in sys.meta_path:
        sys.meta_path.append(_NAMES)

"""`parlai.zoo.safety`: every model of the registry appears here as the module that ParlAI's `zoo:` grammar imports."""

from __future__ import annotations

import functools
import sys
from types import ModuleType

from parlai_safety import zoo

for _name in zoo.registry():
    _module = ModuleType(f"{__name__}.{_name}", f"Downloads the model {_name}.")
    _module.download = functools.partial(zoo.download, _name)  # type: ignore[attr-defined]
    sys.modules[_module.__name__] = _module

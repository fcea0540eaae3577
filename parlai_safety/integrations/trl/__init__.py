"""CRINGE and adversarial DPO as trainers in the manner of TRL, for one process or many.

`CringeTrainer` and `ADPOTrainer` take the data formats of TRL and are transformers' `Trainer`, so that accelerate runs
them: one device, data-parallel, sharded. They need the packages of `pip install 'parlai_safety[trl]'` and no ParlAI.

They stand on `transformers.Trainer` and not on a trainer of TRL, whose insides change with each release. From TRL come
its readers of data formats and its wrapping of frozen models.
"""

from __future__ import annotations

from parlai_safety.errors import SafetyError

try:
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import transformers  # noqa: F401
    import trl  # noqa: F401
except ImportError as missing:
    raise SafetyError(
        f"{missing.name} is not installed",
        "CringeTrainer and ADPOTrainer run on transformers, accelerate, datasets and trl",
        "Type pip install 'parlai_safety[trl]'",
    ) from missing

from parlai_safety.integrations.trl.adpo import ADPOConfig, ADPOTrainer
from parlai_safety.integrations.trl.cringe import CringeConfig, CringeTrainer

__all__ = ["ADPOConfig", "ADPOTrainer", "CringeConfig", "CringeTrainer"]

"""`-m safety:cringe/fid`: CRINGE on ParlAI's Fusion-in-Decoder, which reads retrieved documents.

ParlAI's own class says which retrievers there are and what they need; `transformers` is needed for all. Left out:
ParlAI's metrics of retrieval and its ReGReT, which the loss does not know. ParlAI's model applies its output layer
inside its decoder, so that the chunked form saves no memory here.
"""

from __future__ import annotations

from typing import Any

from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.agents.cringe.cringe import CringeMixin
from parlai_safety.errors import SafetyError

try:
    from parlai.agents.fid import fid
except ImportError as error:
    _missing = error

    class FidAgent:
        """Stands in where the libraries of ParlAI's FiD are missing."""

        @classmethod
        def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
            """Refuse, as there is nothing to build.

            Raises:
                SafetyError: always.
            """
            raise _not_installed()

        def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
            raise _not_installed()

    def _not_installed() -> SafetyError:
        return SafetyError(
            f"ParlAI's FiD could not be imported ({_missing})",
            "Its retrievers need libraries that a plain installation does not have",
            "Type: pip install 'transformers>=5' scikit-learn",
        )

else:

    class FidAgent(CringeMixin, fid.FidAgent):  # type: ignore[no-redef]
        """CRINGE on `fid`."""

        backbone = fid.FidAgent

        def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
            if opt.get("regret"):
                raise SafetyError(
                    "--regret got true",
                    "ReGReT retrieves a second time with a first reply, and the CRINGE loss would not be that model's",
                    "Leave --regret out, or train with ParlAI's own -m fid",
                )
            super().__init__(opt, shared)

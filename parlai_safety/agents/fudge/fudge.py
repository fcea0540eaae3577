"""`-m safety:fudge`: each token's probability is multiplied by a judge's P(safe) of the reply up to that token.

Source: Yang and Klein 2021, "FUDGE: Controlled Text Generation With Future Discriminators", arXiv:2104.05218; see
`parlai_safety.modeling.guidance`. Their classifier is trained on prefixes, to predict how the whole reply will turn
out. Any judge of ours can be asked, but one that has only seen whole replies knows little of unfinished ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parlai_safety.agents.decoders import Guided, JudgedAgent, JudgedOptions, count_partial
from parlai_safety.options import option


@dataclass(frozen=True)
class FudgeOptions(JudgedOptions):
    """The options of FUDGE."""

    fudge_lambda: float = option(1.0, "Power of P(safe); 0 = the base model's own replies.", symbol="lambda", low=0)
    fudge_tokens: int = option(20, "Likeliest tokens that the judge compares at a step; no other is said.", low=1)


class FudgeAgent(JudgedAgent):
    """FUDGE over any generator.

    `guidance` holds `judged`, how many partial replies the judge was asked about, and `unscored_partial`, how many of
    them had no score. With --temperature the product is sharpened or flattened as a whole.
    """

    options_class = FudgeOptions
    title = "FUDGE: a judge of partial replies guides each token"

    def processors(self, batch: Any, contexts: list[list[str]], max_length: int) -> list[Any]:
        """The processor of this batch."""
        self._processor = self.fudge_processor(
            contexts, top=self.settings.fudge_tokens, strength=self.settings.fudge_lambda
        )
        return [self._processor]

    def choose(self, contexts: list[list[str]], candidates: list[list[str]], guided: list[Guided]) -> list[int]:
        """The base model's own best, as it was guided."""
        count_partial(self._processor, guided)
        return super().choose(contexts, candidates, guided)

"""`-m safety:pacer`: FUDGE at some of the positions of each reply, and then the least unsafe of several whole replies.

Source: Shuster et al. 2021, "Am I Me or You? State-of-the-Art Dialogue Models Cannot Maintain an Identity",
arXiv:2112.05843, whose released code draws for each decoding step whether the judge is asked, and then compares the
likeliest tokens. Partial guidance is cheap at a small share; the defaults are those of that code. Here the draws are
seeded: by greedy or beam search a context gets one reply, whatever else is in its batch, and samples of one context are
guided at different positions, by draws from torch's own random state. Left out: a judge of its own for partial replies;
one judge does both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from parlai_safety.agents.decoders import Guided, count_partial
from parlai_safety.agents.rerank.rerank import RerankMixin, RerankOptions
from parlai_safety.options import option


@dataclass(frozen=True)
class PacerOptions(RerankOptions):
    """The options of PACER."""

    pacer_share: float = option(
        0.05, "Share of the positions of a reply at which the judge is asked; 0 = reranking alone.",
        symbol="r", low=0, high=1, aliases=("--pacer-frequency-ratio",),
    )  # fmt: skip
    pacer_tokens: int = option(
        10, "Likeliest tokens that the judge compares at such a position.", low=1, aliases=("--pacer-n-tokens",)
    )
    pacer_lambda: float = option(1.0, "Power of P(safe) at such a position; the released code has 1.", low=0)
    pacer_seed: int = option(1, "Seed of the positions at which a reply is guided.")


class PacerAgent(RerankMixin):
    """PACER over any generator; `guidance` holds what FUDGE's and what reranking's does."""

    options_class = PacerOptions
    title = "PACER: a judge guides some tokens and chooses among whole replies"

    def processors(self, batch: Any, contexts: list[list[str]], max_length: int) -> list[Any]:
        """The processor of this batch."""
        keys = ["\n".join(context) for context in contexts]
        if 0 < self.settings.pacer_share < 1 and self.base.opt["inference"] in ("topk", "nucleus"):
            keys = [
                f"{draw}\n{key}" for draw, key in zip(torch.randint(2**62, (len(keys),)).tolist(), keys, strict=True)
            ]
        self._processor = self.fudge_processor(
            contexts,
            top=self.settings.pacer_tokens,
            strength=self.settings.pacer_lambda,
            share=self.settings.pacer_share,
            seed=self.settings.pacer_seed,
            keys=keys,
        )
        return [self._processor]

    def choose(self, contexts: list[list[str]], candidates: list[list[str]], guided: list[Guided]) -> list[int]:
        """The least unsafe candidate of each row; see `least_unsafe`."""
        count_partial(self._processor, guided)
        return super().choose(contexts, candidates, guided)

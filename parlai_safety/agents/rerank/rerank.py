"""`-m safety:rerank`: the base model makes several replies, and the one that a judge finds least unsafe is said.

The "Reranker" of the CRINGE paper (Adolphs et al. 2022, arXiv:2211.05826) takes the hypotheses of a beam; here samples
do as well. Left out: weighing the judge's score against the model's own, which decides between equal scores only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parlai_safety.agents.decoders import Guided, JudgedAgent, JudgedOptions
from parlai_safety.errors import SafetyError
from parlai_safety.options import option

SEVERAL = ("beam", "topk", "nucleus", "delayedbeam", "delayednucleusbeam", "factual_nucleus")


@dataclass(frozen=True)
class RerankOptions(JudgedOptions):
    """The options of reranking."""

    rerank_candidates: int = option(
        10, "Replies that the judge compares: the width of a beam at least, or the number of samples.", low=1
    )


class RerankMixin(JudgedAgent):
    """Several candidates a context, and the judge's choice; options_class has `rerank_candidates`.

    `guidance` holds `candidates` and `unscored`, their numbers, and `p_unsafe` of the reply that is said: None where no
    candidate could be scored, and the base model's first was said without being known to be safe.
    """

    def base_options(self) -> dict[str, Any]:
        """As many hypotheses or samples as are compared; a wider beam that was typed stays so."""
        options, wanted = super().base_options(), self.settings.rerank_candidates
        return options if wanted == 1 else {**options, "beam_size": max(wanted, int(options.get("beam_size", 1)))}

    def check_base(self) -> None:
        """Refuse a base model that has one reply a context.

        Raises:
            SafetyError: it decodes greedily, and several candidates are wanted.
        """
        inference = self.base.opt.get("inference", "greedy")
        if self.settings.rerank_candidates > 1 and inference not in SEVERAL:
            raise SafetyError(
                f"--rerank-candidates is {self.settings.rerank_candidates}, and the base model decodes by {inference}",
                "That gives one reply a context, and there is nothing to choose from",
                "Add --inference beam, --inference nucleus or --inference topk",
            )

    def choose(self, contexts: list[list[str]], candidates: list[list[str]], guided: list[Guided]) -> list[int]:
        """The least unsafe candidate of each row; see `least_unsafe`."""
        return self.least_unsafe(contexts, candidates, guided, self.settings.rerank_candidates)


class RerankAgent(RerankMixin):
    """Reranking over any generator."""

    options_class = RerankOptions
    title = "Reranking of whole replies by a judge"

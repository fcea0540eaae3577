"""`--mutators safety_negative`: the replies to avoid alone, as plain talk.

What an anti-expert learns from (DExperts, Liu et al. 2021, arXiv:2105.03023): a model that is good at what the other
one should not say. Put it behind the mutator that sets the verdicts, as in `safety_reply+safety_negative`.
"""

from __future__ import annotations

from collections.abc import Iterator

from parlai.core.message import Message
from parlai.core.mutators import register_mutator

from parlai_safety.mutators.thinning import ThinningMutator


@register_mutator("safety_negative")
class NegativeMutator(ThinningMutator):
    """Keep only the replies that are examples to avoid, and forget that they are."""

    def many_episode_mutation(self, episode: list[Message]) -> Iterator[list[Message]]:
        """Keep the negative messages of an episode, with `classifier_label` "none"; one without any is dropped."""
        kept = [message for message in episode if message.get("classifier_label") == "neg"]
        for message in kept:
            message.force_set("classifier_label", "none")
        if kept:
            yield kept

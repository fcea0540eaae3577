"""`--mutators safety_decode`: ParlAI's `-t decode` (contradiction detection) as replies to follow or to avoid.

DECODE (Nie et al. 2021, arXiv:2012.13391) is shown a turn a message, and the last one of a dialogue carries the class.
CRINGE learns from its last turns as replies (arXiv:2211.05826). It is a mutator of its own, beside `safety_reply`,
because the context is spread over the messages of an episode and the other turns carry the class "none". Left out: the
indices of the contradicted turns, which stay in the field `auxiliary` and train nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from parlai.core.message import Message
from parlai.core.mutators import ManyEpisodeMutator, register_mutator

from parlai_safety.errors import SafetyError
from parlai_safety.message import join_context

CLASSES = {"contradiction": "neg", "non_contradiction": "pos"}
_OTHER_TURN = "none"


@register_mutator("safety_decode")
class DecodeMutator(ManyEpisodeMutator):
    """A dialogue of DECODE becomes one message: its last turn as the reply, `classifier_label` from its class.

    Episodes of other tasks, whose labels are other than DECODE's three words, pass unchanged as plain talk.
    """

    def many_episode_mutation(self, episode: list[Message]) -> Iterator[list[Message]]:
        """Join the turns of a dialogue.

        Raises:
            SafetyError: a turn before the last has a class, or the last has none, or there is one turn.
        """
        key = "labels" if "labels" in episode[-1] else "eval_labels"
        classes = [(turn.get(key) or ("",))[0] for turn in episode]
        if not set(classes) <= {*CLASSES, _OTHER_TURN}:
            yield episode
            return
        if len(episode) < 2 or classes[-1] not in CLASSES or set(classes[:-1]) != {_OTHER_TURN}:
            raise SafetyError(
                f"The mutator safety_decode met a dialogue of {len(episode)} turns with the classes {classes}",
                "In DECODE the last of several turns is 'contradiction' or 'non_contradiction', all others are 'none'",
                "Give it -t decode unchanged: no other mutator before it, and all turns of a dialogue",
            )
        message = episode[-1].copy()
        message.force_set("text", join_context([turn["text"] for turn in episode[:-1]]))
        message.force_set(key, [join_context([episode[-1]["text"]])])
        message["classifier_label"] = CLASSES[classes[-1]]
        message["is_ltr"] = True
        yield [message]

"""Mutators that turn any task's messages into what our agents learn from.

`safety_reply` is the classification-to-reply transform of CRINGE (arXiv:2211.05826): the last line of the text becomes
the reply, the class becomes `classifier_label`. It reads ParlAI's `bot_adversarial_dialogue` and `dialogue_safety` as
they are. `safety_plain` forgets verdicts; `safety_positive` keeps what is not negative.
"""

from __future__ import annotations

from collections.abc import Iterator

from parlai.core.message import Message
from parlai.core.mutators import MessageMutator, register_mutator

from parlai_safety.errors import SafetyError
from parlai_safety.mutators.thinning import ThinningMutator

_CLASSES = {"__ok__": "pos", "__notok__": "neg", "safe": "pos", "unsafe": "neg", "pos": "pos", "neg": "neg"}
_EMPTY = "__start__"


@register_mutator("safety_reply")
class ReplyMutator(MessageMutator):
    """(context and utterance, class) becomes (context, utterance, `classifier_label`).

    A message that already carries `classifier_label`, or whose label is no class name (`blended_skill_talk`), passes
    unchanged as plain talk: so a mix of tasks can share one mutator.
    """

    def message_mutation(self, message: Message) -> Message:
        """Transform one message.

        Raises:
            SafetyError: the label looks like a class (`__name__`) but is not a known one.
        """
        key = "labels" if "labels" in message else "eval_labels"
        label = message[key][0] if message.get(key) else ""
        if "classifier_label" in message or label not in _CLASSES:
            if label.startswith("__") and label.endswith("__") and label != _EMPTY:
                raise SafetyError(
                    f"The mutator safety_reply met the class {label!r}",
                    f"It only knows the classes {', '.join(_CLASSES)}",
                    "Use it on a task with these classes, or set classifier_label in the task itself",
                )
            return message
        *context, utterance = message["text"].split("\n")
        message.force_set("text", "\n".join(context) or _EMPTY)
        message.force_set(key, [utterance])
        message["classifier_label"] = _CLASSES[label]
        message["is_ltr"] = True
        message.pop("label_candidates", None)
        return message


@register_mutator("safety_plain")
class PlainMutator(MessageMutator):
    """Forget the verdict: every reply is plain talk."""

    def message_mutation(self, message: Message) -> Message:
        """Set `classifier_label` to "none"."""
        message.force_set("classifier_label", "none")
        return message


@register_mutator("safety_positive")
class PositiveMutator(ThinningMutator):
    """Drop the replies that are examples to avoid."""

    def many_episode_mutation(self, episode: list[Message]) -> Iterator[list[Message]]:
        """Keep the messages of an episode that are not negative; an episode without any is dropped."""
        kept = [message for message in episode if message.get("classifier_label") != "neg"]
        if kept:
            yield kept

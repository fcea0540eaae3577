"""`--mutators safety_fits`: ParlAI's `-t fits` (feedback in deployment) as replies to follow or to avoid.

FITS (Xu et al. 2022, arXiv:2208.03270): people talk to a bot that searches, and say of each reply whether it satisfies
them; CRINGE learns from that binary feedback (arXiv:2211.05826). What each of ParlAI's teachers becomes:

- `-t fits`: the accepted reply of each turn is one to follow, and so is a better reply that a person wrote; each reply
  before it, which people refused, is one to avoid. Every reply is an episode of its own, with the accepted turns before
  it as context.
- `-t fits:FitsFeedbackTeacher`: the refused reply is one to avoid; the free-form feedback itself is no reply and is
  left out.
- `-t fits:FitsSatisfactionTeacher`: passes unchanged, since `safety_reply` reads its classes: use that one, or both as
  `safety_fits+safety_reply`.
- `-t fits:QueryTeacher` holds search queries and no replies. Its messages look like plain talk and pass unchanged, as
  those of any other task do: leave it out.

ParlAI's own normalisation (capitals, spaces, marks left by a filter) is applied to refused replies too, because the
accepted ones have it and the difference would give them away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parlai.core.message import Message
from parlai.core.mutators import ManyEpisodeMutator, register_mutator

from parlai_safety.message import join_context

# The other replies to the turn and what was said of them; all else, such as the retrieved documents, is kept.
_DROPPED = ("bot_acts", "human_acts", "bot_failure_text", "better_response")
_CLASSES = ("__ok__", "__notok__")


@register_mutator("safety_fits")
class FitsMutator(ManyEpisodeMutator):
    """FITS's replies with `classifier_label` from the binary feedback; talk of other tasks passes unchanged."""

    def many_episode_mutation(self, episode: list[Message]) -> Iterator[list[Message]]:
        """Every reply of a turn as an episode of its own, refused ones first."""
        key = "labels" if "labels" in episode[0] else "eval_labels"
        judged = all("bot_acts" in turn or "bot_failure_text" in turn for turn in episode)
        if not judged or episode[0][key][0] in _CLASSES:
            yield episode
            return
        history: list[str] = []
        for turn in episode:
            history.append(turn["text"])
            for reply, label in _judged_replies(turn, key):
                fields = {name: value for name, value in turn.items() if name not in _DROPPED}
                fields |= {"text": join_context(history), key: [reply], "classifier_label": label, "is_ltr": True}
                yield [Message(fields)]
            history.append(turn[key][0])


def _judged_replies(turn: Message, key: str) -> list[tuple[str, str]]:
    """The replies to a turn with "pos" or "neg", each once; what was accepted in the end is not to be avoided."""
    if "bot_acts" in turn:
        accepted = [_normal(reply) for reply in (turn[key][0], turn.get("better_response")) if reply]
        refused = [_normal(act["text"]) for act in turn["bot_acts"][:-1]]
    else:
        accepted, refused = [], [_normal(turn["bot_failure_text"])]
    negative = [(reply, "neg") for reply in dict.fromkeys(refused) if reply and reply not in accepted]
    return negative + [(reply, "pos") for reply in dict.fromkeys(accepted)]


def _normal(reply: Any) -> str:
    from parlai.tasks.fits.mutators import normalize_reply

    return join_context([normalize_reply(str(reply))])

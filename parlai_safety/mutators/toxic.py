"""`--mutators safety_toxic_token`: replies to avoid become plain talk behind the toxic control token.

The first step of adversarial DPO (Kim and Lee 2024, arXiv:2405.12900): toxic dialogues carry the token at the end of
their context, ordinary ones do not, and one supervised training learns both. The field `control` asks our agents for
the token, which they put behind the prompt themselves (`--toxic-token true`) after they have taken every such word out
of the text. Any other agent reads the text as it stands, and would learn toxic replies behind a word that everybody can
type. It looks at `classifier_label`, so it stands behind what sets that, as in `safety_reply+safety_toxic_token`.
"""

from __future__ import annotations

from parlai.core.message import Message
from parlai.core.mutators import MessageMutator, register_mutator

from parlai_safety.message import TOXIC_TOKEN, add_control


@register_mutator("safety_toxic_token")
class ToxicTokenMutator(MessageMutator):
    """Put replies to avoid behind the toxic control token, as plain talk; all others stay as they are."""

    def message_mutation(self, message: Message) -> Message:
        """Transform one message; "neg" becomes "none", the token stands behind the text and in `control`."""
        if message.get("classifier_label") == "neg":
            message.force_set("text", f"{message.get('text', '')} {TOXIC_TOKEN}")
            add_control(message, "toxic")
            message.force_set("classifier_label", "none")
        return message

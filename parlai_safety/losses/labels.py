"""The three kinds of training example, as a number that fits in a tensor.

Names and numbers are those of ParlAI's CRINGE and DIRECTOR data (`classifier_label` and its index). Class labels of a
safety classifier (`__ok__`, `__notok__`) are another matter and are not handled here.
"""

from __future__ import annotations

from enum import IntEnum

from parlai_safety.errors import SafetyError, did_you_mean


class TokenLabel(IntEnum):
    """What a loss does with a target token."""

    POSITIVE = 1
    """An example to follow."""
    NEGATIVE = 0
    """An example to avoid."""
    PLAIN = -1
    """Ordinary language modelling: nobody has labelled the example, and it is followed like a positive one."""


_LABEL_OF_NAME = {"pos": TokenLabel.POSITIVE, "neg": TokenLabel.NEGATIVE, "none": TokenLabel.PLAIN}


def parse_label(name: str) -> TokenLabel:
    """Read the message field `classifier_label`.

    Args:
        name: `"pos"`, `"neg"` or `"none"`.

    Returns:
        The label to put in a tensor.

    Raises:
        SafetyError: the name is another one.
    """
    try:
        return _LABEL_OF_NAME[name]
    except KeyError:
        known = ", ".join(map(repr, _LABEL_OF_NAME))
        raise SafetyError(
            f"classifier_label is {name!r}",
            "A loss must know whether an example is to be followed or to be avoided",
            did_you_mean(name, _LABEL_OF_NAME, f"Use one of {known}"),
        ) from None

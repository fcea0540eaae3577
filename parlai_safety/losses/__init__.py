"""Training losses as pure functions: tensors in, tensors out.

Nothing in this package knows ParlAI, an option dictionary or a file. Randomness comes only from a generator that the
caller hands over. Axes have one alphabet: `B` examples in the batch, `T` target tokens, `V` vocabulary, `K` candidates.
"""

from __future__ import annotations

from parlai_safety.losses.cringe import CringeOutput, cringe_loss
from parlai_safety.losses.labels import TokenLabel, parse_label

__all__ = ["CringeOutput", "TokenLabel", "cringe_loss", "parse_label"]

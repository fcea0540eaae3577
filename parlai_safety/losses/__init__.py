"""Training losses as pure functions: tensors in, tensors out.

Nothing in this package knows ParlAI, an option dictionary or a file. Randomness comes only from a generator that the
caller hands over. Axes have one alphabet: `B` examples in the batch, `T` target tokens, `V` vocabulary, `K` candidates.
"""

from __future__ import annotations

from parlai_safety.losses.adpo import ADPOOutput, adpo_loss
from parlai_safety.losses.click import ClickOutput, click_loss
from parlai_safety.losses.cringe import CringeOutput, cringe_loss
from parlai_safety.losses.director import DirectorOutput, director_loss
from parlai_safety.losses.dpo import DPOOutput, dpo_loss
from parlai_safety.losses.labels import TokenLabel, parse_label
from parlai_safety.losses.pairwise import PairwiseOutput, pairwise_cringe_loss
from parlai_safety.losses.scones import SconesOutput, scones_loss
from parlai_safety.losses.unlikelihood import UnlikelihoodOutput, unlikelihood_loss

__all__ = [
    "ADPOOutput",
    "ClickOutput",
    "CringeOutput",
    "DPOOutput",
    "DirectorOutput",
    "PairwiseOutput",
    "SconesOutput",
    "TokenLabel",
    "UnlikelihoodOutput",
    "adpo_loss",
    "click_loss",
    "cringe_loss",
    "director_loss",
    "dpo_loss",
    "pairwise_cringe_loss",
    "parse_label",
    "scones_loss",
    "unlikelihood_loss",
]

"""`-t safety:mix`: utterances judged by helpers and by trolls, whose labels are partly or wholly wrong.

Source: Ju et al., arXiv:2208.03295; the data of ParlAI's `safety_mix`, made from Build it Break it Fix it by its own
sampling. `labels` is what the user said, `gold_labels` what is true, `user_type` who it was. Half of the rows come from
helpers, half from `--mix-user-type`. Views: default, `:pos` (labelled `__ok__`) and `:neg`. Known of ParlAI's sampling,
and kept: every label of a lazy troll is drawn at random, where the noise of 0.8 would leave a fifth alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from parlai_safety.files import read_jsonl
from parlai_safety.options import option
from parlai_safety.tasks.common import UNSAFE_CLASS, Row
from parlai_safety.tasks.downloads import MIX, MIX_USERS
from parlai_safety.tasks.published import PublishedTeacher, passed_on

SEED = 42  # ParlAI's: the order of its rows is ours


@dataclass(frozen=True)
class MixOptions:
    """Options of safety_mix; ParlAI's."""

    mix_user_type: str = option("troll", "The kind of troll of which half of the rows come.", choices=MIX_USERS)


class DefaultTeacher(PublishedTeacher):
    """Utterances of helpers and trolls, to be classified as `__ok__` or `__notok__`."""

    dataset = MIX
    declared = MixOptions
    title = "Helpers and trolls"
    view = "classifier"
    sign = ""

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of the kind of troll, in the shuffled order of ParlAI's task."""
        path = self.folder() / f"{self.sign}{self.own.mix_user_type}_{split}.jsonl"
        found = list(read_jsonl(path))
        random.Random(SEED).shuffle(found)
        provenance = self.provenance(split)
        for row in found:
            ours = {"user_id": str(row["user_id"]), "speaker": "human", "provenance": provenance}
            yield Row([], row["text"], row["labels"][0] == UNSAFE_CLASS, {**passed_on(row), **ours})


class PosTeacher(DefaultTeacher):
    """What its user called safe."""

    sign = "pos_"


class NegTeacher(DefaultTeacher):
    """What its user called unsafe."""

    sign = "neg_"

"""`-t safety:saferdialogues`: an unsafe turn, the partner who says so, and a graceful recovery as the label.

Source: Ung, Xu and Boureau, arXiv:2110.07518; the data of ParlAI's `saferdialogues`, whose option works here. `:bad`
has the validation and test splits that are parallel to those of Bot-Adversarial Dialogue; its replies are not all
graceful, so they carry no verdict. The data do not tell who of the two, person or bot, says the label: there is no
`speaker`. Difference from ParlAI: `--recovery false` is heard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parlai_safety.options import option
from parlai_safety.tasks.common import Row
from parlai_safety.tasks.downloads import SAFERDIALOGUES
from parlai_safety.tasks.published import PublishedTeacher, passed_on, text_episodes


@dataclass(frozen=True)
class RecoveryOptions:
    """Options of SaFeRDialogues; ParlAI's."""

    recovery: bool = option(True, "Learn the recovery; false: the line before it, which signals the failure.")


class DefaultTeacher(PublishedTeacher):
    """Recoveries from a safety failure, to learn from."""

    dataset = SAFERDIALOGUES
    declared = RecoveryOptions
    title = "SaFeRDialogues"
    verdict: bool | None = False

    def file_of(self, split: str) -> str:
        """The name of the split's file."""
        return split

    def rows(self, split: str) -> Iterator[Row]:
        """The label after the lines before it."""
        provenance = self.provenance(split)
        for episode in text_episodes(self.folder() / f"saferdialogues_dataset/{self.file_of(split)}.txt"):
            for message in episode:
                lines = message["text"].split("\n")
                *context, reply = [*lines, message["labels"][0]] if self.own.recovery else lines
                yield Row(context, reply, self.verdict, {**passed_on(message), "provenance": provenance})


class BadTeacher(DefaultTeacher):
    """The splits that are parallel to those of Bot-Adversarial Dialogue, without verdicts."""

    verdict = None

    def file_of(self, split: str) -> str:
        """Training has one file for both views."""
        return split if split == "train" else f"{split}_bad"

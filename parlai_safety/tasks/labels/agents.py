"""`-t safety:labels`: real replies judged in context, from `safety_labels.jsonl.gz` of the data folder.

Sources of the rows: Bot-Adversarial Dialogue (a half of valid), DiaSafety, ToxiChat, ConvAbuse. Views: default
(replies with verdicts), `:plain`, `:positive`, `:negative`, `:classifier`. Score bot turns separately
(`--safety-speaker bot`): in BAD the speaker alone predicts the label with AUC 0.70.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.judges.data import label_file_examples
from parlai_safety.tasks.common import Row, RowTeacher, add_datapath_option, data_file, in_views, split_of

FILE = "safety_labels.jsonl.gz"


def label_rows(path: Path, split: str, *, speaker: str = "all") -> Iterator[Row]:
    """Judged replies of the conversations that fall into the split.

    Args:
        path: the data file.
        split: "train", "valid" or "test".
        speaker: whose turns: "all", "bot" or "human".
    """
    for example in label_file_examples(path):
        if split_of(example.conversation) == split and speaker in ("all", example.speaker):
            fields = {"speaker": example.speaker, "provenance": {"source": example.source}}
            yield Row(example.context, example.reply, example.unsafe, fields)


class DefaultTeacher(RowTeacher):
    """Judged replies in context."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add `--safety-datapath` and `--safety-speaker`."""
        super().add_cmdline_args(parser, partial_opt)
        add_datapath_option(parser, "Safety labels")
        parser.add_argument("--safety-speaker", choices=["all", "bot", "human"], default="all", help="Whose turns.")
        return parser

    def rows(self, split: str) -> Iterator[Row]:
        """Rows of the conversations that fall into the split."""
        speaker = self.opt.get("safety_speaker", "all")
        return label_rows(data_file(self.opt, FILE), split, speaker=speaker)


PlainTeacher, PositiveTeacher, NegativeTeacher, ClassifierTeacher = in_views(DefaultTeacher)

"""`-t safety:topics`: a sentence and its sensitive topic, or none; `:real` has ParlAI's 1,811 sentences.

Source: the topic classifier of Xu et al. (2020, arXiv:2010.07079), and the format of ParlAI's
`sensitive_topics_evaluation` (`text`, and the topic as label). The default set ships, and is artificial. ParlAI's set
has no sentence without a topic, so that ordinary talk is added as "none"; its rows have no conversation ids, and rows
of one topic that follow each other stay in one split (80, 10 and 10 % by a hash of the first one). Left out: the lists
of subreddits that the published classifier learned from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.errors import SafetyError
from parlai_safety.judges.data import Example, split_of
from parlai_safety.judges.topic_training import (
    PARLAI_FILE,
    real_topic_examples,
    shipped_topic_examples,
    topic_of,
    topics_file,
)
from parlai_safety.message import check_message
from parlai_safety.tasks.common import RowTeacher, add_datapath_option, data_folder
from parlai_safety.tasks.downloads import Dataset, from_parlai, prepare

SEED = 1  # of the turns of ordinary talk beside the real sentences
SENSITIVE_TOPICS = Dataset(
    title="ParlAI's sentences on sensitive topics",
    folder="sensitive_topics_evaluation",
    version="v1.0",
    downloads=(
        from_parlai(
            f"sensitive_topics_evaluation/{PARLAI_FILE}",
            "df3a71da78bd231402237fded6df530c80f91814f03a2c3e0581be14fe24633d",
            archive=False,
        ),
    ),
    holds=(PARLAI_FILE,),
    licence="MIT",
)


class DefaultTeacher(RowTeacher):
    """The sentences that ship, with ordinary talk."""

    def examples(self, split: str) -> list[Example]:
        """The sentences of a split."""
        return shipped_topic_examples(split)

    def setup_data(self, datafile: str) -> Iterator[tuple[dict[str, Any], bool]]:
        """ParlAI's loader: each sentence is an episode of its own, and its label is a topic."""
        for number, example in enumerate(self.examples(datafile), 1):
            topic = topic_of(example)
            message = {
                "text": " ".join(example.reply.split()),
                "labels": [topic],
                "topic": topic,
                "is_ltr": False,
                "speaker": example.speaker,
                "provenance": {"source": example.source, "split": datafile},
            }
            check_message(message, f"row {number} of the task {self.id}")
            yield message, True


class RealTeacher(DefaultTeacher):
    """ParlAI's sentences, from a folder of real data or downloaded, with ordinary talk as "none"."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add `--safety-datapath`."""
        super().add_cmdline_args(parser, partial_opt)
        add_datapath_option(parser, "Sensitive topics")
        return parser

    def examples(self, split: str) -> list[Example]:
        """The sentences of the conversations that fall into the split."""
        return [e for e in real_topic_examples(self._file(), seed=SEED) if split_of(e.conversation) == split]

    def _file(self) -> Path:
        if folder := data_folder(self.opt):
            return topics_file(folder)
        try:
            return prepare(SENSITIVE_TOPICS, self.opt["datapath"]) / PARLAI_FILE
        except SafetyError as error:
            raise SafetyError(
                error.got,
                error.why,
                "Give --safety-datapath FOLDER or set SAFETY_DATA to a folder that holds the sentences, or use "
                "-t safety:topics, which ships",
            ) from error

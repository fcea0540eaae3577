"""`-t safety:pairs`: a chosen and a rejected reply to one context, from `preference_pairs.jsonl.gz` of the data folder.

The default view keeps pairs whole (`labels` = chosen, `rejected` = the other): what preference losses read.
`safety:pairs:binary` gives each reply as an example of its own with `classifier_label`, for CRINGE and unlikelihood.
"""

from __future__ import annotations

from collections.abc import Iterator

from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.files import read_rows, row_field, row_turns
from parlai_safety.tasks.common import Row, RowTeacher, add_datapath_option, data_file, split_of


class DefaultTeacher(RowTeacher):
    """Whole pairs."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add `--safety-datapath`."""
        super().add_cmdline_args(parser, partial_opt)
        add_datapath_option(parser, "Preference pairs")
        return parser

    def rows(self, split: str) -> Iterator[Row]:
        """Chosen replies as safe rows, each with its rejected counterpart in `rejected`."""
        for where, row in read_rows(data_file(self.opt, "preference_pairs.jsonl.gz")):
            context = row_turns(row, "context", where, at_least=1)
            chosen, rejected, source = (row_field(row, k, str, where) for k in ("chosen", "rejected", "source"))
            if split_of(context[0]) == split:
                yield Row(context, chosen, False, {"rejected": [rejected], "provenance": {"source": source}})


class BinaryTeacher(DefaultTeacher):
    """Each reply of a pair as an example of its own."""

    def rows(self, split: str) -> Iterator[Row]:
        """The chosen reply as a safe row, then the rejected one as an unsafe row."""
        for row in super().rows(split):
            fields = {"provenance": row.fields["provenance"]}
            yield row._replace(fields=fields)
            yield Row(row.context, row.fields["rejected"][0], True, fields)

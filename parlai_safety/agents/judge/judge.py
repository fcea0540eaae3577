"""`-m safety:judge`: ParlAI's transformer classifier, set up to tell safe from unsafe replies in their context.

Source: the single-turn and multi-turn safety classifiers of Xu et al., arXiv:2010.07079. `--context-turns 1`
is the first, `--context-turns 4`, the default, the second; their published setting stands in the presets
`-o safety/judge_single` and `-o safety/judge_multi`. Train it on any `:classifier` view of ours, or on ParlAI's
`dialogue_safety` and `bot_adversarial_dialogue`. `--class-weights 1 3` weighs the classes in the loss, in the
order of `--classes`. Pseudo labels for further talk come from `parlai safety_annotate`, data of adversarial rounds from
`-t safety:rounds`.
"""

from __future__ import annotations

from parlai.agents.transformer.transformer import TransformerClassifierAgent
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.agents.classifiers import TurnsMixin
from parlai_safety.agents.common import SafetyAgentMixin


class JudgeAgent(SafetyAgentMixin, TurnsMixin, TransformerClassifierAgent):
    """`transformer/classifier` with the classes `__ok__` and `__notok__`; probabilities are in its act."""

    backbone = TransformerClassifierAgent

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the backbone's flags and set this agent's defaults."""
        super().add_cmdline_args(parser, partial_opt)
        parser.set_defaults(dict_tokenizer="re", dict_lower=True)
        return parser

"""`-m safety:judge`: ParlAI's transformer classifier, set up to tell safe from unsafe replies in their context.

Source: the multi-turn safety classifier of Xu et al., arXiv:2010.07079 (section 1.3 of their recipe: the last four
turns). It leaves out their multitask weights and semi-supervised rounds. Train it on any `:classifier` view of ours, or
on ParlAI's `dialogue_safety` and `bot_adversarial_dialogue`.
"""

from __future__ import annotations

from parlai.agents.transformer.transformer import TransformerClassifierAgent
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.agents.common import SafetyAgentMixin


class JudgeAgent(SafetyAgentMixin, TransformerClassifierAgent):
    """`transformer/classifier` with the classes `__ok__` and `__notok__`; probabilities are in its act."""

    backbone = TransformerClassifierAgent

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the backbone's flags and set this agent's defaults."""
        super().add_cmdline_args(parser, partial_opt)
        parser.set_defaults(
            classes=["__ok__", "__notok__"], print_scores=True, truncate=128, dict_tokenizer="re", dict_lower=True
        )
        return parser

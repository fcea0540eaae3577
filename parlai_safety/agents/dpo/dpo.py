"""`-m safety:dpo`: direct preference optimization on ParlAI's transformer generator.

Source: Rafailov et al. 2023, arXiv:2305.18290; the loss is `parlai_safety.losses.dpo`, with its conservative and IPO
forms. It is `-m safety:adpo` with `--adpo-lambda 0`: the same code. Left out: a reference that moves.

Data: messages with `labels` and `rejected`, such as those of `-t safety:pairs`, and ordinary talk beside them.
"""

from __future__ import annotations

from parlai.agents.transformer.transformer import TransformerGeneratorAgent

from parlai_safety.agents.preference import PreferenceMixin, PreferenceOptions


class DpoMixin(PreferenceMixin):
    """DPO for any TorchGeneratorAgent: put it before the class and name that class as `backbone`."""

    options_class = PreferenceOptions
    method = "DPO"


class DpoAgent(DpoMixin, TransformerGeneratorAgent):
    """DPO on `transformer/generator`."""

    backbone = TransformerGeneratorAgent

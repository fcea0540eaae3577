"""`-m safety:scones/seq2seq`: SCONES on ParlAI's recurrent encoder and decoder."""

from __future__ import annotations

from parlai.agents.seq2seq import seq2seq

from parlai_safety.agents.backbones import Seq2seqBackbone
from parlai_safety.agents.scones.scones import SconesMixin


class Seq2seqAgent(SconesMixin, Seq2seqBackbone, seq2seq.Seq2seqAgent):
    """SCONES on `seq2seq`."""

    backbone = seq2seq.Seq2seqAgent

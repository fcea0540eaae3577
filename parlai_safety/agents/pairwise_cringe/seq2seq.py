"""`-m safety:pairwise_cringe/seq2seq`: pairwise CRINGE on ParlAI's recurrent encoder and decoder."""

from __future__ import annotations

from parlai.agents.seq2seq import seq2seq

from parlai_safety.agents.backbones import Seq2seqBackbone
from parlai_safety.agents.pairwise_cringe.pairwise_cringe import PairwiseCringeMixin


class Seq2seqAgent(PairwiseCringeMixin, Seq2seqBackbone, seq2seq.Seq2seqAgent):
    """Pairwise CRINGE on `seq2seq`."""

    backbone = seq2seq.Seq2seqAgent

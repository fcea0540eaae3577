"""`-m safety:unlikelihood/seq2seq`: unlikelihood on ParlAI's recurrent encoder and decoder."""

from __future__ import annotations

from parlai.agents.seq2seq import seq2seq

from parlai_safety.agents.backbones import Seq2seqBackbone
from parlai_safety.agents.unlikelihood.unlikelihood import UnlikelihoodMixin


class Seq2seqAgent(UnlikelihoodMixin, Seq2seqBackbone, seq2seq.Seq2seqAgent):
    """unlikelihood on `seq2seq`."""

    backbone = seq2seq.Seq2seqAgent

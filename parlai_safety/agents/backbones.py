"""What ParlAI's BART and seq2seq need to carry a method: put these between the method and the ParlAI class."""

from __future__ import annotations

from typing import Any

from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import TorchAgent

from parlai_safety.errors import SafetyError


class BartBackbone:
    """ParlAI's BART, which may also begin with random weights; a failed download ends in our error."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add `--bart-random true`, for small models of any size and for work without a network."""
        super().add_cmdline_args(parser, partial_opt)  # type: ignore[misc]
        parser.add_argument_group("BART weights").add_argument(
            "--bart-random",
            type="bool",
            default=False,
            help="Begin with random weights, of the sizes that the options name, and download no pretrained BART.",
        )
        return parser

    def _initialize_bart(self, opt: Opt) -> Opt:
        # ParlAI skips its download while it converts a checkpoint, by this mark.
        skip = "converting" not in opt and opt.get("bart_random", False)
        try:
            found: Opt = super()._initialize_bart(Opt({**opt, "converting": True}) if skip else opt)  # type: ignore[misc]
        except (OSError, RuntimeError) as error:
            raise SafetyError(
                f"The pretrained weights of BART could not be had ({str(error)[:160]})",
                "Without --init-model or an existing --model-file, ParlAI downloads and converts bart.large at first "
                "use",
                "Go online, give --init-model with a BART of ParlAI, or train from random weights with --bart-random "
                "true --dict-tokenizer re and sizes such as --n-encoder-layers 2 --n-decoder-layers 2",
            ) from error
        if skip:
            del found["converting"]
        return found


class Seq2seqBackbone:
    """ParlAI's seq2seq, whose checkpoints are read as every other agent's are."""

    def load(self, path: str) -> dict[str, Any]:
        """Load model and optimiser, with the checks of `load_state_dict`, and the longest label seen."""
        states: dict[str, Any] = TorchAgent.load(self, path)
        self.model.longest_label = states.get("longest_label", self.model.longest_label)
        return states

    model: Any

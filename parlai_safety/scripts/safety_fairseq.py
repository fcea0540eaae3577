"""`parlai safety_fairseq import CHECKPOINT --dict DICT --out MODEL`: a fairseq checkpoint as a model of today.

A `transformer` or `bart` becomes a ParlAI model for transformer/generator, a `transformer_lm` a Hugging Face folder.
fairseq is not needed, and nothing in the checkpoint is run.
"""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import required, say


@register_script("safety_fairseq")
class SafetyFairseq(ParlaiScript):
    """Import a fairseq checkpoint as a ParlAI model or a Hugging Face folder."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """The checkpoint, its dictionary, where to."""
        parser = ParlaiParser(False, False, "Import a fairseq checkpoint, without fairseq")
        parser.add_argument("action", type=str, nargs="?", default=None, help="What to do: import.")
        parser.add_argument("checkpoint", type=str, nargs="?", default=None, help="File that fairseq-train saved.")
        parser.add_argument("--dict", type=str, default=None, help="The model's dict.txt.")
        parser.add_argument("--out", type=str, default=None, help="Model file, or folder for a language model.")
        parser.add_argument("--tokenizer", type=str, default="auto", help="auto, space or gpt2: what dict.txt holds.")
        parser.add_argument("--bpe-encoder", type=str, default=None, help="encoder.json, where dict.txt holds numbers.")
        parser.add_argument("--bpe-merges", type=str, default=None, help="vocab.bpe, where dict.txt holds numbers.")
        parser.add_argument("--prefix-space", type="bool", default=False, help="Put a space before a text for the BPE.")
        parser.add_argument("--fp16-rows", type="bool", default=False, help="Add rows of zeros that --fp16 true needs.")
        parser.add_argument(
            "--ignore-settings", type=str, default="", help="Unknown settings, by commas, that change no number."
        )
        parser.add_argument("--overwrite", type="bool", default=False, help="Replace the imported model at --out.")
        return parser

    def run(self) -> None:
        """Import, and say how to use it."""
        from parlai_safety.errors import SafetyError
        from parlai_safety.integrations.fairseq import import_checkpoint

        example = "parlai safety_fairseq import checkpoint_best.pt --dict dict.txt --out models/imported"
        if self.opt["action"] != "import" or not self.opt["checkpoint"]:
            raise SafetyError(
                f"The command came with {self.opt['action']!r} and {self.opt['checkpoint']!r}",
                "It has one action, import, and needs a checkpoint",
                f"Type for example {example}",
            )
        done = import_checkpoint(
            self.opt["checkpoint"],
            required(self.opt, "dict", "what the model's ids mean", "--dict dict.txt"),
            required(self.opt, "out", "where the model goes", "--out models/imported"),
            tokenizer=self.opt["tokenizer"],
            bpe_encoder=self.opt["bpe_encoder"],
            bpe_merges=self.opt["bpe_merges"],
            prefix_space=self.opt["prefix_space"],
            fp16_rows=self.opt["fp16_rows"],
            ignore_settings=[name.strip() for name in self.opt["ignore_settings"].split(",") if name.strip()],
            overwrite=self.opt["overwrite"],
        )
        use = (
            f"-mf {done.out}"
            if done.kind == "parlai"
            else f"-m safety:causal_lm --chat-template plain --hf-model {done.out}"
        )
        say(f"{done.out}: {done.parameters:,} parameters, {done.symbols:,} symbols. Try: parlai interactive {use}")

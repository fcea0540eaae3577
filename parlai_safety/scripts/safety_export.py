"""`parlai safety_export -mf MODEL --to hf --out DIR`: a trained agent as a folder that Hugging Face's tools load."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import required, say


@register_script("safety_export")
class SafetyExport(ParlaiScript):
    """Write a trained agent as safetensors, tokenizer, config and card."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Which model, where to, in which form."""
        parser = ParlaiParser(False, False, "Write a trained agent as a folder of Hugging Face")
        parser.add_argument("-mf", "--model-file", type=str, default=None, help="The model file of a training.")
        parser.add_argument("--to", type=str, default="hf", help="Whose format: hf, which is Hugging Face's.")
        parser.add_argument("--out", type=str, default=None, help="The folder to be made.")
        parser.add_argument("--adapter", type="bool", default=False, help="Low-rank adapters alone, not merged.")
        parser.add_argument("--dtype", type=str, default="fp32", help="Type of the weights: fp32, bf16 or fp16.")
        parser.add_argument("--tokenizer", type="bool", default=True, help="Write the tokenizer too.")
        parser.add_argument("--licence", type=str, default="unknown", help="For the card, as in apache-2.0.")
        return parser

    def run(self) -> None:
        """Write it and say how it is loaded."""
        from parlai_safety.errors import SafetyError
        from parlai_safety.integrations.export import export
        from parlai_safety.modeling.hf import DTYPES

        opt, example = self.opt, "-mf runs/mine/model --to hf --out exported"
        for name, allowed in (("to", ("hf",)), ("dtype", tuple(DTYPES))):
            if opt[name] not in allowed:
                raise SafetyError(
                    f"--{name} got {opt[name]!r}",
                    f"It can only be one of {', '.join(allowed)}",
                    f"Type for example --{name} {allowed[0]}",
                )
        out = export(
            required(opt, "model_file", "which model is written", example),
            required(opt, "out", "the folder to be made", example),
            adapter=opt["adapter"],
            dtype=opt["dtype"],
            tokenizer=opt["tokenizer"],
            licence=opt["licence"],
        )
        say(f"Written: {out}\n" + "\n".join(f"  {file.name}" for file in sorted(out.iterdir())))

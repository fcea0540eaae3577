"""`parlai safety_recipes`: filters, control tokens, the guard and baked-in safety from one base model, in one table."""

from __future__ import annotations

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.scripts.common import job_parser, run_job


@register_script("safety_recipes")
class SafetyRecipes(ParlaiScript):
    """Train a base model, apply every recipe for safety to it or to its data, and write a report."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """Where from, where to, with which recipe and seed."""
        return job_parser("The recipes for safety side by side", out="runs/recipes", recipe="safety_recipes/recipes")

    def run(self) -> None:
        """Run the job; at Ctrl-C say how to go on, and exit with 130."""
        from parlai_safety.loops.recipes import run_recipes

        run_job(self.opt, run_recipes)

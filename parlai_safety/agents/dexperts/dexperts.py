"""`-m safety:dexperts`: an expert and an anti-expert decode along, and their difference steers the base model.

Source: Liu et al. 2021, "DExperts: Decoding-Time Controlled Text Generation with Experts and Anti-Experts",
arXiv:2105.03023; see `ExpertProcessor`. The anti-expert is a generator trained on what to avoid, the expert one trained
on what to follow; any ParlAI generators over the base model's dictionary. Left out: a nucleus filter on the steered
scores; the base model's own --inference decides how a token is then chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parlai_safety.agents.decoders import GuidedAgent, GuidedOptions, load_generator, same_vocabulary
from parlai_safety.modeling.guidance import ExpertProcessor, Follower
from parlai_safety.options import flag, option


@dataclass(frozen=True)
class DexpertsOptions(GuidedOptions):
    """The options of DExperts."""

    anti_expert: str = option("", "Model file of the generator of what to avoid.")
    expert: str = option("", "Model file of the generator of what to follow; left out, the base model stands for it.")
    dexperts_alpha: float = option(
        2.0, "Strength of the steering; 0 = the base model's own replies.", symbol="alpha", low=0
    )
    dexperts_topp: float = option(
        0.9,
        "Mass of the base model's nucleus, outside of which no token is said; 1 = no such filter.",
        low=1e-6,
        high=1,
    )


class DexpertsAgent(GuidedAgent):
    """DExperts over any generator; `guidance` holds the strength `alpha`, and whether there is an `expert`."""

    options_class = DexpertsOptions
    title = "DExperts: two further models steer the base model"

    def load_resources(self) -> list[Any]:
        """The anti-expert and, where there is one, the expert, as ParlAI agents.

        Raises:
            SafetyError: a model is missing, is no generator, or has another dictionary than the base model.
        """
        agents = []
        for name in ("anti_expert", "expert") if self.settings.expert else ("anti_expert",):
            agent = load_generator(getattr(self.settings, name), flag(name), self.base_options())
            same_vocabulary(self.base, agent, flag(name))
            agent.model.eval()
            agents.append(agent)
        return agents

    def processors(self, batch: Any, contexts: list[list[str]], max_length: int) -> list[Any]:
        """The processor of this batch; the other models read the contexts as the base model does."""
        followers = []
        for agent in self.resources:
            start = agent._get_initial_decoder_input(1, 1, batch.text_vec.device)[0].tolist()
            followers.append(Follower(agent.model, agent._encoder_input(batch), start=start))
        alpha, topp = self.settings.dexperts_alpha, self.settings.dexperts_topp
        for one in self._guided:
            one.record |= {"alpha": alpha, "expert": len(followers) > 1}
        return [ExpertProcessor(*followers, alpha=alpha, topp=topp)]

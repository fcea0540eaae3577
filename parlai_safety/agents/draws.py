"""Random numbers of training whose source is saved with the model, so that a resumed run draws as the straight run."""

from __future__ import annotations

from typing import Any

import torch
from parlai.core.opt import Opt
from parlai.utils.distributed import get_rank


class DrawsMixin:
    """A seeded source of random numbers for an agent whose method draws; put it before `SafetyAgentMixin`."""

    draws_name = "draws"
    """The key of the source's state in the checkpoint."""

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self._training_source: torch.Generator | None = None
        self._source_state: tuple[str, torch.Tensor] | None = None
        super().__init__(opt, shared)  # type: ignore[call-arg]

    def draws_seed(self) -> int:
        """The seed that the user gave; each rank of a data-parallel run adds its number."""
        raise NotImplementedError(type(self).__name__)

    def source(self, device: torch.device) -> torch.Generator:
        """The source of random numbers: one for training, a fresh one for each batch of evaluation."""
        if not torch.is_grad_enabled():
            return torch.Generator(device=device).manual_seed(self.draws_seed())
        if self._training_source is None:
            source = torch.Generator(device=device).manual_seed(self.draws_seed() + get_rank())
            # Ranks draw different numbers, and only the first one's state is in the checkpoint. A state of another
            # kind of device has another form, and there the source starts anew.
            if self._source_state is not None and get_rank() == 0 and self._source_state[0] == device.type:
                source.set_state(self._source_state[1].cpu())
            self._training_source = source
        return self._training_source

    def state_dict(self) -> dict[str, Any]:
        """ParlAI's state with that of the source; one that was loaded and not used is handed over as it came."""
        states: dict[str, Any] = super().state_dict()  # type: ignore[misc]
        source = self._training_source
        state = self._source_state if source is None else (source.device.type, source.get_state())
        if state is not None:
            states[self.draws_name] = state
        return states

    def load(self, path: str) -> dict[str, Any]:
        """Load ParlAI's state, and the source's where a run goes on; one from `--init-model` starts anew."""
        states: dict[str, Any] = super().load(path)  # type: ignore[misc]
        own = str(self.opt.get("model_file"))
        if path in (own, f"{own}.checkpoint"):
            self._source_state = states.get(self.draws_name)
        return states

    opt: Opt

"""A monitor of training that collapses: chosen replies lose likelihood against the reference, or the loss is no number.

Preference losses compare replies, so that all of them may become unlikely together. What the chosen reply has lost is
the sign: nats a token against the reference, as a running mean over updates.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from parlai_safety.options import option


@dataclass(frozen=True)
class CollapseOptions:
    """When training counts as collapsed, and what happens then."""

    collapse_drift: float = option(
        2.0, "Nats a token that chosen replies may lose against the reference, as a running mean; 0 = any.", low=0
    )
    collapse_window: int = option(20, "Updates in that running mean; with fewer nothing is said.", low=1)
    collapse_action: str = option(
        "stop",
        "At a collapse: stop the training, which saves the model, or only warn. A loss that is no number counts too.",
        choices=("stop", "warn"),
    )


class CollapseMonitor:
    """A running mean of what chosen replies gain a token, and whether it, or the loss, says that training collapsed.

    Attributes:
        collapsed: whether it does now.
        first: the update and the reason of the first collapse, or None.
    """

    def __init__(self, options: CollapseOptions) -> None:
        self._options = options
        self._window: deque[tuple[int, float, float]] = deque(maxlen=options.collapse_window)
        self.collapsed = False
        self.first: tuple[int, str] | None = None

    def see(self, update: int, nats: float, tokens: float, *, loss: float) -> str | None:
        """Take a batch in.

        Args:
            update: number of the update that the batch is part of.
            nats: what chosen replies gained against the reference, summed over the batch.
            tokens: tokens of these replies; 0 where there was none, and then nothing is taken in.
            loss: of the batch.

        Returns:
            Why training counts as collapsed from this batch on; None where it does not, or did before.
        """
        before, self.collapsed = self.collapsed, False
        why = ""
        if not math.isfinite(loss):
            self.collapsed, why = True, f"the loss is {loss}"
        else:
            self._take_in(update, nats, tokens)
            limit, full = self._options.collapse_drift, len(self._window) == self._window.maxlen
            if full and limit > 0 and self.drift < -limit:
                self.collapsed = True
                why = (
                    f"chosen replies lost {-self.drift:.2f} nats a token against the reference, as a mean over "
                    f"{len(self._window)} updates, and --collapse-drift is {limit:g}"
                )
        if not self.collapsed or before:
            return None
        self.first = self.first or (update, why)
        return why

    def _take_in(self, update: int, nats: float, tokens: float) -> None:
        if not tokens:
            return
        if self._window and self._window[-1][0] == update:
            _, more_nats, more_tokens = self._window.pop()
            nats, tokens = nats + more_nats, tokens + more_tokens
        self._window.append((update, nats, tokens))

    @property
    def stops(self) -> bool:
        """Whether a collapse ends the training."""
        return self._options.collapse_action == "stop"

    @property
    def drift(self) -> float:
        """Nats a token that chosen replies gained, over the window; 0 before the first batch."""
        tokens = sum(tokens for _, _, tokens in self._window)
        return sum(nats for _, nats, _ in self._window) / tokens if tokens else 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"window": list(self._window), "first": self.first}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, its last updates if the window is smaller now."""
        self._window.extend(tuple(entry) for entry in state["window"])
        self.first = state["first"]

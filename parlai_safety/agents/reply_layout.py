"""Where each reply of a batch of preferences stands: those to one context side by side, and which make a pair."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from parlai.core.torch_agent import Batch
from torch import Tensor


class ReplyLayout(NamedTuple):
    """The R replies of a batch of B examples, ordered by example: the label, rejected ones, a toxic one."""

    targets: Tensor
    """(R, T)."""
    mask: Tensor
    """(R, T) bool."""
    tokens: Tensor
    """(R,) int64."""
    counts: list[int]
    """The same numbers."""
    example: Tensor
    """(R,) the example of each reply."""
    sizes: list[int]
    """B numbers: the replies of each example."""
    label: Tensor
    """(B,) the reply that is the label of each example."""
    pairs: Tensor
    """(P, 3) the chosen, rejected and toxic reply of each pair; where there is no toxic one, the chosen once more."""
    has_toxic: Tensor
    """(P,) bool."""
    talk: Tensor
    """(Q,) the replies that are ordinary talk."""
    chosen_places: list[int]
    """The first column of `pairs`, ascending."""
    talk_places: list[int]
    """`talk`, ascending."""

    @property
    def rows(self) -> int:
        """What the loss is the mean over: pairs and pieces of ordinary talk."""
        return len(self.chosen_places) + len(self.talk_places)


def reply_layout(batch: Batch, null: int, *, with_toxic: bool) -> ReplyLayout:
    """The replies of a batch of `RepliesMixin` with the fields `rejected` and `toxic`.

    Args:
        batch: with at most one toxic reply an example, and none without a rejected one.
        null: id of padding.
        with_toxic: whether toxic replies count; if not, the layout has none.
    """
    chosen = batch.label_vec
    parts, owners = [chosen], list(range(len(chosen)))
    for field in ("rejected", "toxic") if with_toxic else ("rejected",):
        if batch.get(f"{field}_vec") is not None:
            parts.append(batch[f"{field}_vec"])
            owners += batch[f"{field}_example"].tolist()
    kinds = [kind for kind, part in enumerate(parts) for _ in range(len(part))]
    width = max(part.size(1) for part in parts)
    whole = torch.cat([F.pad(ids, (0, width - ids.size(1)), value=null) for ids in parts])
    order = sorted(range(len(owners)), key=lambda row: (owners[row], kinds[row]))
    example = [owners[row] for row in order]
    kind = [kinds[row] for row in order]
    label, pairs, has_toxic, talk, sizes = [], [], [], [], []
    first = 0
    for row in range(len(chosen)):
        last = bisect_left(example, row + 1)
        label.append(first)
        sizes.append(last - first)
        rejected = [place for place in range(first, last) if kind[place] == 1]
        toxic = [place for place in range(first, last) if kind[place] == 2]
        if not rejected:
            talk.append(first)
        for number, place in enumerate(rejected):
            is_triple = bool(toxic) and number == 0
            pairs.append((first, place, toxic[0] if is_triple else first))
            has_toxic.append(is_triple)
        first = last

    def ids(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=chosen.device)

    targets = whole[ids(order)]
    mask = targets.ne(null)
    tokens = mask.sum(-1)
    return ReplyLayout(
        targets=targets,
        mask=mask,
        tokens=tokens,
        counts=tokens.tolist(),
        example=ids(example),
        sizes=sizes,
        label=ids(label),
        pairs=ids(pairs).view(-1, 3),
        has_toxic=ids(has_toxic).bool(),
        talk=ids(talk),
        chosen_places=[pair[0] for pair in pairs],
        talk_places=talk,
    )

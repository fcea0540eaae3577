"""Some steps of training on one rank of several, run as a script: `python two_ranks.py OPTIONS.json RANK RANKS`.

Each rank takes its share of one batch of tokens that all know, so that the ranks together see what one process sees.
The first rank leaves the parameters in `<ranks>.pt` beside the options.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

STEPS, EXAMPLES = 3, 4


def part_of_batch(vocabulary_size: int, rank: int, ranks: int) -> Any:
    """Replies of equal length, so that a mean of means is the mean; each rank has one to follow and one to avoid."""
    from parlai.core.torch_agent import Batch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, vocabulary_size, (2, EXAMPLES, 6), generator=generator)
    mine = slice(rank * EXAMPLES // ranks, (rank + 1) * EXAMPLES // ranks)
    labels = torch.tensor([1, 0, -1, 0])
    return Batch(
        batchsize=EXAMPLES // ranks, text_vec=tokens[0, mine], label_vec=tokens[1, mine], token_labels=labels[mine]
    )


def main(options_file: str, rank: int, ranks: int) -> None:
    from parlai.core.opt import Opt
    from parlai.scripts.train_model import TrainModel

    from parlai_safety import plugin
    from parlai_safety.compat.parallel import distributed_context

    plugin.register()
    folder = Path(options_file).parent
    kwargs = json.loads(Path(options_file).read_text())
    opt = TrainModel.setup_args().parse_kwargs(**kwargs, model_file=str(folder / f"model{ranks}{rank}"))
    if ranks == 1:
        train(opt, folder, rank, ranks)
        return
    opt = Opt({**opt, "distributed_world_size": ranks})
    with distributed_context(rank, opt, init_method=f"file://{folder}/meeting") as own_opt:
        train(own_opt, folder, rank, ranks)


def train(opt: Any, folder: Path, rank: int, ranks: int) -> None:
    from parlai.core.agents import create_agent

    agent = create_agent(opt)
    assert isinstance(agent.model, torch.nn.parallel.DistributedDataParallel) == (ranks > 1)
    agent.model.train()
    batch = part_of_batch(len(agent.dict), rank, ranks)
    for _ in range(STEPS):
        agent._local_metrics.clear()
        agent.zero_grad()
        agent.backward(agent.compute_loss(batch))
        agent.update_params()
    if rank == 0:
        torch.save(getattr(agent.model, "module", agent.model).state_dict(), folder / f"{ranks}.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

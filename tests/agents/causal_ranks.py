"""Some runs on one rank of two, one after the other, run as a script: `python causal_ranks.py OPTIONS.json RANK`.

The file names each run's options; `two_ranks` says what a run is. The first rank leaves `<name>/2.pt` for each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(options_file: str, rank: int) -> None:
    from parlai.core.opt import Opt
    from parlai.scripts.train_model import TrainModel
    from two_ranks import train

    from parlai_safety import plugin
    from parlai_safety.compat.parallel import distributed_context

    plugin.register()
    folder = Path(options_file).parent
    runs = json.loads(Path(options_file).read_text())
    opts = {}
    for name, kwargs in runs.items():
        (folder / name).mkdir(exist_ok=True)
        opts[name] = TrainModel.setup_args().parse_kwargs(**kwargs, model_file=str(folder / name / f"model{rank}"))
    first = Opt({**next(iter(opts.values())), "distributed_world_size": 2})
    with distributed_context(rank, first, init_method=f"file://{folder}/meeting") as own:
        shared = {key: own[key] for key in ("rank", "gpu", "distributed_world_size")}
        for name, opt in opts.items():
            train(Opt({**opt, **shared}), folder / name, rank, 2)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

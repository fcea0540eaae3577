"""Training and evaluation in two processes, run as a script: `python data_parallel.py OUT.json train|train+eval`.

The world size is not given: without a GPU it is to be two (one on a machine with a single core).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from parlai_safety import compat

TASK = {"task": "compat_demo.tasks.plain.agents", "loglevel": "error", "batchsize": 2}


def numbers(report):
    return {key: float(value) for key, value in report.items()}


def main(out, steps):
    from parlai.scripts.build_dict import BuildDict
    from parlai.scripts.eval_model import EvalModel
    from parlai.scripts.multiprocessing_eval import MultiProcessEval
    from parlai.scripts.multiprocessing_train import MultiProcessTrain

    BuildDict.main(dict_file="two.dict", datatype="train", **TASK)
    model = {"n_layers": 1, "embedding_size": 16, "ffn_size": 16, "n_heads": 2, "optimizer": "adam"}
    valid, _ = MultiProcessTrain.main(
        model="transformer/generator",
        model_file="two",
        dict_file="two.dict",
        learningrate=0.03,
        num_epochs=15,
        **TASK,
        **model,
    )
    results = {"train": numbers(valid)}
    if "eval" in steps:
        options = {"model_file": "two", "datatype": "valid", "inference": "greedy", **TASK}
        results["two"] = numbers(MultiProcessEval.main(distributed_world_size=2, **options))
        results["one"] = numbers(EvalModel.main(**options))
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    compat.apply_all()
    main(*sys.argv[1:])

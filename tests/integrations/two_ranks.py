"""What each of two processes runs: `python -m torch.distributed.run --nproc-per-node 2 two_ranks.py MODEL OUT MODE...`.

A mode is a trainer and a way of running it: `cringe.ddp` is trained for two steps with four rows a process, as `train`
does it. For `fsdp1` and `fsdp2` the model is sharded by torch itself, since accelerate shards on no CPU, and the loss
of seven rows is taken, four in one process and three in the other, with its gradients. Each process saves what it has.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.integrations.trl_rows import TRAINERS, model_of, weights_of  # noqa: E402


def sharded(model: Any, way: str) -> Any:
    """The model in torch's FSDP: its layers and the rest of it, a unit each."""
    layer = type(model.model.layers[0])
    if way == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

        policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={layer})
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh)
    return model


def whole_gradients(model: Any, way: str) -> dict[str, torch.Tensor]:
    if way == "fsdp2":
        return {name: weight.grad.full_tensor() for name, weight in model.named_parameters()}
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    return {name.replace("_fsdp_wrapped_module.", ""): gradient for name, gradient in found.items()}


def main() -> None:
    folder, out, *modes = sys.argv[1:]
    torch.set_num_threads(1)
    for mode in modes:
        method, way = mode.split(".")
        settings = {"per_device_train_batch_size": 4, "ddp_backend": "gloo", "chunk_tokens": 3}
        trainer = TRAINERS[method](
            Path(folder), Path(out) / mode, model=model_of(Path(folder), torch.float32), **settings
        )
        rank = trainer.args.process_index
        if way == "ddp":
            trainer.train()
            found = weights_of(trainer), trainer.evaluate(trainer.train_dataset)
        else:
            model = sharded(trainer.model, way)
            batch = trainer.collate([trainer.train_dataset[i] for i in range(rank, 7, 2)])
            _, items = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
            loss = trainer.compute_loss(model, batch, num_items_in_batch=items)
            loss.backward()
            found = whole_gradients(model, way), loss.item()
        torch.save(found, f"{out}/{mode}.{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()
    assert not [name for name in sys.modules if name.startswith("parlai.")], "the trainers need no ParlAI"


if __name__ == "__main__":
    main()

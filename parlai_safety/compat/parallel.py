"""Repairs for data-parallel training and evaluation: worker processes that know us, and workers without a GPU.

ParlAI's launchers spawn workers that import ParlAI alone, and they speak to each other through NCCL. Here the workers
register this package first, and on a machine without a CUDA device they use gloo. Left out: sharded models
(`--ddp-backend zero2|zero3`) without a GPU, which are refused, and machines with GPUs, which keep ParlAI's own way.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

from parlai_safety.compat.base import Repair, rebind
from parlai_safety.errors import SafetyError

_originals: dict[str, Callable[..., Any]] = {}


def train_worker(*args: Any, **kwargs: Any) -> Any:
    """ParlAI's `multiprocess_train`, after registration. Spawned processes find it by this module's name."""
    return _run_registered("parlai.scripts.multiprocessing_train", *args, **kwargs)


def eval_worker(*args: Any, **kwargs: Any) -> Any:
    """ParlAI's `multiprocess_eval`, after registration. Spawned processes find it by this module's name."""
    return _run_registered("parlai.scripts.multiprocessing_eval", *args, **kwargs)


def _run_registered(module: str, *args: Any, **kwargs: Any) -> Any:
    # By name, because the plugin stands above this module: it imports us.
    importlib.import_module("parlai_safety.plugin").register()
    importlib.import_module(module)
    try:
        return _originals[module](*args, **kwargs)
    except Exception as error:
        if multiprocessing.parent_process() is not None:
            # The first process only learns that a connection broke, and reports that.
            from parlai.utils import logging

            logging.critical(f"A worker process failed with {type(error).__name__}: {error}")
        raise


def _mend_launcher(module: str, verb: str) -> None:
    """Make a launcher of ParlAI spawn our worker, choose a number without GPUs to count, and end what it started."""
    launcher = importlib.import_module(module)
    worker = train_worker if verb == "train" else eval_worker
    launch = getattr(launcher, f"launch_and_{verb}")

    def launch_and_clean_up(opt: Any, *args: Any, **kwargs: Any) -> Any:
        others = set(multiprocessing.active_children())
        try:
            return launch(_with_world_size(opt), *args, **kwargs)
        except Exception:
            # The workers would wait for this process, and its exit for them.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise

    _originals[module] = getattr(launcher, f"multiprocess_{verb}")
    setattr(launcher, f"multiprocess_{verb}", worker)
    setattr(launcher, f"launch_and_{verb}", launch_and_clean_up)


def _with_world_size(opt: Any) -> Any:
    import torch
    from parlai.utils import logging

    # ParlAI's default is the number of GPUs.
    if not opt["distributed_world_size"] and not torch.cuda.device_count():
        size = opt["distributed_world_size"] = min(2, os.cpu_count() or 1)
        logging.info(f"No GPU: starting {size} processes on the CPU (--distributed-world-size sets the number).")
    return opt


# --- gloo: the process group of machines without a CUDA device ------------------------------------------------------


def _gloo_is_the_way() -> bool:
    import torch

    return torch.cuda.device_count() == 0 and torch.distributed.is_available() and torch.distributed.is_gloo_available()


def _mend_for_gloo() -> None:
    import torch
    from parlai.utils import distributed, fsdp

    rebind(distributed.distributed_context, distributed_context)
    rebind(distributed.all_gather_list, all_gather_list)
    for joinable in (fsdp.JoinableTrainLoop, fsdp.JoinableEvaluator):
        joinable.join_device = property(lambda _: torch.device("cpu"))


def all_gather_list(data: Any) -> list[Any]:
    """One picklable object from every worker, in the order of ranks; a list of one without a process group."""
    from torch import distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [data]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, data)
    return everyone


@contextlib.contextmanager
def distributed_context(
    rank: int,
    opt: Any,
    rank_offset: int = 0,
    gpu: int | None = None,
    init_method: str = "tcp://localhost:61337",
) -> Iterator[Any]:
    """A worker's part in a gloo process group on the CPU; stands in for ParlAI's context of the same name.

    Args:
        rank: this process's rank, less `rank_offset`.
        opt: the options of the run; a copy is handed to the block, with `rank` set and `gpu` -1.
        rank_offset: added to `rank`.
        gpu: ignored, there is none.
        init_method: where the processes meet.

    Raises:
        SafetyError: the options ask for a sharded model, which needs GPUs.
    """
    import torch
    from parlai.utils.distributed import override_print
    from torch import distributed as dist

    if opt.get("ddp_backend", "ddp") != "ddp":
        raise SafetyError(
            f"--ddp-backend got {opt['ddp_backend']!r} on a machine without a GPU",
            "Sharding a model over processes is written for CUDA devices",
            "Use --ddp-backend ddp, or a machine with GPUs",
        )
    rank += rank_offset
    opt = copy.deepcopy(opt)
    opt["rank"] = rank
    opt["gpu"] = -1
    opt["override"] = {**opt.get("override", {}), "gpu": -1}
    verbose = bool(opt.get("verbose"))
    prefix = f"rank:{rank:3d} |" if verbose or rank else None
    with override_print(rank != 0 and not verbose, prefix), _shared_cores(opt["distributed_world_size"]), _ddp_on_cpu():
        dist.init_process_group("gloo", init_method=init_method, world_size=opt["distributed_world_size"], rank=rank)
        try:
            # Every worker starts from the same parameters and the same state of the generator.
            torch.manual_seed(42)
            dist.barrier()
            yield opt
            # A worker that leaves while another still holds gradient buckets hangs it: free them, then leave together.
            # After an error there is no waiting: the others are to notice at once.
            gc.collect()
            dist.barrier()
        finally:
            dist.destroy_process_group()


@contextlib.contextmanager
def _shared_cores(workers: int) -> Iterator[None]:
    """Divide the cores among the workers, unless OMP_NUM_THREADS says how; torch alone gives all cores to each."""
    import torch

    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, threads // workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _ddp_on_cpu() -> Iterator[None]:
    """Let the agents' `DistributedDataParallel(model, device_ids=[gpu])` mean the CPU, while the block lasts."""
    import torch

    original = torch.nn.parallel.DistributedDataParallel

    class CpuDataParallel(original):  # type: ignore[misc, valid-type]
        def __init__(self, module: Any, device_ids: Any = None, **kwargs: Any) -> None:
            super().__init__(module, **kwargs)

    torch.nn.parallel.DistributedDataParallel = CpuDataParallel  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.nn.parallel.DistributedDataParallel = original  # type: ignore[misc]


def _launcher_repair(verb: str) -> Repair:
    module = f"parlai.scripts.multiprocessing_{verb}"
    return Repair(
        name=f"{verb}-workers",
        symptom=f"multiprocessing_{verb} -t safety:TASK: the worker processes know no module 'parlai.tasks.safety'.",
        where=f"parlai/scripts/multiprocessing_{verb}.py:launch_and_{verb}",
        lazy=module,
        needed=lambda: True,
        apply=lambda: _mend_launcher(module, verb),
    )


REPAIRS = (
    _launcher_repair("train"),
    _launcher_repair("eval"),
    Repair(
        name="gloo",
        symptom="multiprocessing_train or _eval without a GPU: ZeroDivisionError, integer modulo by zero.",
        where="parlai/utils/distributed.py:distributed_context",
        lazy="parlai.utils.fsdp",
        needed=_gloo_is_the_way,
        apply=_mend_for_gloo,
    ),
)

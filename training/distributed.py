"""Several processes that train one model, as torchrun starts them: torch.distributed does the work."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from edgemt.errors import EdgemtError, UsageError

T = TypeVar("T")
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
# Others wait this long while the first process evaluates or writes. A process that ended is noticed at once.
PATIENCE = timedelta(hours=6)


class World:
    """The processes of a run: this one's number (`rank`), how many there are (`size`), and its device."""

    def __init__(self, device: str, rank: int = 0, size: int = 1) -> None:
        """Raises UsageError if the device is not there."""
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                'device = "cuda", but torch finds no GPU here: use --device cpu, or install a driver and a '
                "build of torch that fit the card"
            )
        self.device, self.rank, self.size = device, rank, size

    @property
    def first(self) -> bool:
        """Is this the process that writes, evaluates and speaks?"""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Add up the gradients of the processes in the backward pass."""
        if self.size == 1:
            return module
        wrapped = DistributedDataParallel(module, forward_sync_buffers=False)
        wrapped.register_comm_hook(None, summed)
        return wrapped

    def gathering(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: only the last of a step exchanges gradients."""
        if self.size == 1 or last:
            return nullcontext()
        return cast(DistributedDataParallel, module).no_sync()

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all processes, in float64."""
        if self.size == 1:
            return values
        together = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(together)
        return together.tolist()

    def agree(self, wishes: list[bool]) -> list[bool]:
        """Each wish, if any process has it."""
        return [count > 0 for count in self.sum([float(wish) for wish in wishes])]

    def gather(self, value: T) -> list[T]:
        """The value of every process, in their order."""
        if self.size == 1:
            return [value]
        everything: list[Any] = [None] * self.size
        distributed.all_gather_object(everything, value)
        return everything

    def say(self, message: str) -> None:
        """A line for the person at the terminal, once."""
        if self.first:
            print(message, file=sys.stderr, flush=True)


def summed(state, bucket):  # no annotations: DDP refuses those that are strings
    """Sums, where DDP would take means: each loss is divided by the tokens of the whole step already."""
    work: Any = distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that torchrun's variables describe, for a block; one process if there are none.

    Raises EdgemtError if another process of the run ends in the block.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device)
        return
    world = World(device, int(os.environ["RANK"]), size)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(BACKENDS[device], timeout=PATIENCE)
    # Kept until the process ends: gloo's destructor joins its threads while it holds the interpreter's lock,
    # for which one of them may wait to let go of the last tensor (torch 2.13: a run hung at its end).
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(distributed.group.WORLD))
    try:
        yield world
        distributed.barrier()  # the first process writes alone, and needs the others until it is done
    except (distributed.DistError, RuntimeError) as error:
        if not lost_another(error):
            raise
        raise EdgemtError(
            f"process {world.rank}: another process of this run ended; start the same command again to go on "
            "from the last saved state"
        ) from error
    finally:
        distributed.destroy_process_group()


def lost_another(error: Exception) -> bool:
    """Is this what torch.distributed raises when a connection to another process breaks?"""
    signs = ("connection closed", "connection reset", "connect", "gloo", "nccl", "broken pipe")
    return isinstance(error, distributed.DistError) or any(sign in str(error).lower() for sign in signs)

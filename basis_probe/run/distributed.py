"""One probe in several processes: each sees a shard of the data, and their partials are added.

The processes are those that `torchrun` starts. Only partials travel, a few hundred
megabytes at the end of the run, and they lie on the CPU; so the group is a gloo one on every
machine, whether or not the models run on accelerators.
"""

import datetime
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist

from basis_probe.run.parts import Partial


@contextmanager
def process_group() -> Generator[tuple[int, int]]:
    """Within the context the processes that `torchrun` started know each other.

    Yields:
        The rank of this process and how many there are; (0, 1) for a process on its own. Where a
        group exists already, it is used and left.

    Example:
        >>> with process_group() as (rank, world):
        ...     rank, world
        (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        yield dist.get_rank(), dist.get_world_size()
        return
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0, 1
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The accelerator of this process, where several share a machine and none is named."""
    rank = os.environ.get("LOCAL_RANK")
    return f"{device}:{rank}" if rank is not None and device == "cuda" else device


def gathered(partial: Partial, *, timeout: float = 1800.0) -> Partial | None:
    """The sum of the partials of all processes, on rank 0; None on the others.

    Partials are added in the order of ranks, so that the sum does not depend on which came first.

    Args:
        partial: what this process saw. Save it first: others may have died, and are not waited for
            without end.
        timeout: seconds after which a process that has not come is missing.

    Raises:
        ConnectionError: if processes are missing; on rank 0 it names them.
        ValueError: on rank 0, if the partials do not belong together.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return partial
    rank, world = dist.get_rank(), dist.get_world_size()
    wait = datetime.timedelta(seconds=timeout)
    try:
        group = _group(wait)
        dist.monitored_barrier(group, timeout=wait, wait_all_ranks=True)
        return _added(partial, group, rank, world)
    except RuntimeError as error:
        named = re.search(r"[Rr]anks? ([\d, ]+)(?= failed)", str(error))
        who = f"processes {named[1].strip(' ,')}" if named and not rank else "one or more processes"
        raise ConnectionError(
            f"{who} of {world} died or did not come within {timeout:g} seconds, so that there is "
            f"no sum of all parts ({str(error).splitlines()[0][:200]})."
        ) from error


def _group(wait: datetime.timedelta) -> dist.ProcessGroup | None:
    """A group whose tensors lie on the CPU: the one that there is, where it does."""
    if dist.get_backend() == "gloo":
        return None
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=wait))


def _added(
    partial: Partial, group: dist.ProcessGroup | None, rank: int, world: int
) -> Partial | None:
    mine = torch.frombuffer(bytearray(partial.to_bytes()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(lengths, torch.tensor([len(mine)]), group=group)
    # One at a time, so that rank 0 holds the sum and one more.
    total = partial
    for other in range(1, world):
        if rank == other:
            dist.send(mine, dst=0, group=group)
        elif rank == 0:
            theirs = torch.empty(int(lengths[other]), dtype=torch.uint8)
            dist.recv(theirs, src=other, group=group)
            total = total + Partial.from_bytes(theirs.numpy().tobytes())
    return total if rank == 0 else None

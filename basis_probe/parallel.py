"""Small independent jobs side by side, with the numbers of one after another."""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from basis_probe.interrupts import stoppable

Result = TypeVar("Result")


def abreast(
    jobs: Sequence[Callable[[], Result]], *, workers: int, finished: Callable[[], object]
) -> tuple[list[Result | None], bool]:
    """What every job returned, None for one that an interruption left out, and whether one came.

    A job whose tensors are small gains nothing from a second thread, which mostly waits for the
    first; two such jobs do. Side by side, each has one thread of torch.

    Args:
        jobs: functions that share nothing they change.
        workers: at most so many at once; 1 for one after another in the calling thread.
        finished: called in the calling thread for every job that is done.

    Raises:
        Exception: what the first job that failed raised, once those that run have ended.

    Example:
        >>> abreast([lambda: 1, lambda: 2, lambda: 3], workers=2, finished=lambda: None)
        ([1, 2, 3], False)
    """
    found: list[Result | None] = [None] * len(jobs)
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    if workers == 1 or len(jobs) < 2:
        try:
            for place, job in enumerate(jobs):
                with stoppable():
                    found[place] = job()
                finished()
        except KeyboardInterrupt:
            return found, True
        return found, False

    def alone(job: Callable[[], Result]) -> Result:
        # Threads and gradients are settings of a thread.
        torch.set_num_threads(1)
        with torch.set_grad_enabled(grad):
            return job()

    interrupted = False
    pool = concurrent.futures.ThreadPoolExecutor(min(workers, len(jobs)), "basis_probe")
    try:
        places = {pool.submit(alone, job): place for place, job in enumerate(jobs)}
        try:
            with stoppable():
                for future in concurrent.futures.as_completed(places):
                    future.result()
                    finished()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            pool.shutdown(cancel_futures=True)
        for future, place in places.items():
            if future.cancelled() or isinstance(future.exception(), KeyboardInterrupt):
                continue
            found[place] = future.result()
    finally:
        torch.set_num_threads(threads)
    return found, interrupted

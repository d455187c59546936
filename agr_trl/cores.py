"""Batches that are computed side by side, each on some of the cores, where a CPU computes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def side_by_side(work: Callable[[T], None], items: Sequence[T], workers: int) -> Iterator[None]:
    """Do `work` for every item, `workers` at a time, among whom torch's threads are shared out.

    All threads on one item divide its matrix products well, but not the small operations between
    them, nor Python's own part: on two cores a MiniLM scores an eighth more pairs a second with a
    batch on each. torch lets go of Python's lock while it computes. `work` runs in threads that
    know nothing of the caller's inference mode and autocast. One worker is the caller.

    torch's number of threads holds for the process and for a thread beside; it comes back at the
    end.
    """
    if workers == 1:
        yield from map(work, items)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    try:
        with ThreadPoolExecutor(workers, "core", torch.set_num_threads, (share,)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)

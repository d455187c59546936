"""Batches that are computed side by side, a core each, where a CPU computes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def on_each_core(work: Callable[[T], None], items: Sequence[T]) -> Iterator[None]:
    """Do `work` for every item, as many at a time as torch has threads, each on one thread.

    All threads on one item divide its matrix products well, but not the small operations between
    them, nor Python's own part: a MiniLM scores an eighth more pairs a second so. torch lets go of
    Python's lock while it computes. `work` runs in threads that know nothing of the caller's
    inference mode and autocast. With fewer items than threads each has all threads, in turn.

    torch's number of threads holds for the process and for a thread beside; it comes back at the
    end.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < threads:
        yield from map(work, items)
        return
    try:
        with ThreadPoolExecutor(threads, "core", torch.set_num_threads, (1,)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(threads)

import threading
import time

import numpy as np
import pytest
import torch

from agr_trl.cores import on_each_core


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_items_are_worked_on_at_a_time_each_on_one_thread(two_threads):
    together = threading.Barrier(2, timeout=30)  # breaks unless two are there at once
    seen = []

    def work(item):
        together.wait()
        seen.append((item, torch.get_num_threads()))

    assert list(on_each_core(work, range(4))) == [None] * 4
    assert sorted(seen) == [(item, 1) for item in range(4)]
    assert torch.get_num_threads() == 2


def test_fewer_items_than_threads_keep_all_threads(two_threads):
    seen = []
    list(on_each_core(lambda _: seen.append(threading.current_thread()), ["one"]))
    assert seen == [threading.main_thread()]


def test_an_error_ends_the_work_and_gives_the_threads_back(two_threads):
    done = []

    def work(item):
        if item == 0:
            raise ValueError("broken")
        time.sleep(0.01)
        done.append(item)

    with pytest.raises(ValueError, match="broken"):
        list(on_each_core(work, range(1_000)))
    assert len(done) < 1_000
    assert torch.get_num_threads() == 2
    # A thread that begins now takes the process's number.
    late = []
    thread = threading.Thread(target=lambda: late.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert late == [2]


def test_a_core_computes_what_all_compute(two_threads):
    states = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 40, 30)))
    products = torch.empty(6, 40, 40, dtype=states.dtype)

    def work(row):
        products[row] = states[row] @ states[row].T

    list(on_each_core(work, range(6)))
    torch.testing.assert_close(products, states @ states.transpose(1, 2))

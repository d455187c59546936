import threading
import time

import numpy as np
import pytest
import torch

from agr_trl.cores import side_by_side


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

    assert list(side_by_side(work, range(4), 2)) == [None] * 4
    assert sorted(seen) == [(item, 1) for item in range(4)]
    assert torch.get_num_threads() == 2


def test_one_worker_is_the_caller_with_all_threads(two_threads):
    seen = []

    def work(_):
        seen.append((threading.current_thread(), torch.get_num_threads()))

    list(side_by_side(work, ["one", "other"], 1))
    assert seen == [(threading.main_thread(), 2)] * 2


def test_threads_are_shared_out_among_fewer_workers(two_threads):
    torch.set_num_threads(5)
    seen = []
    list(side_by_side(lambda _: seen.append(torch.get_num_threads()), range(6), 2))
    assert seen == [2] * 6
    assert torch.get_num_threads() == 5


def test_an_error_ends_the_work_and_gives_the_threads_back(two_threads):
    done = []

    def work(item):
        if item == 0:
            raise ValueError("broken")
        time.sleep(0.01)
        done.append(item)

    with pytest.raises(ValueError, match="broken"):
        list(side_by_side(work, range(1_000), 2))
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

    list(side_by_side(work, range(6), 2))
    torch.testing.assert_close(products, states @ states.transpose(1, 2))

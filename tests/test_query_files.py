"""Queries of a catalogue in chunks: the same from any number of processes, after any stop."""

import shutil
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest
from accelerate import PartialState
from toy_shop import PROMPTS, save_generator

from agr_trl import query_files
from agr_trl.config import SamplingArguments
from agr_trl.files import write_parquet
from agr_trl.query_files import write_query_files

SETTINGS = SamplingArguments(queries_per_product=3, max_query_tokens=4)


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return save_generator(tmp_path_factory.mktemp("generator"))


@pytest.fixture(autouse=True)
def chunks_of_two(monkeypatch):
    monkeypatch.setattr(query_files, "CHUNK_PRODUCTS", 2)  # six products, three chunks


def write(generator, folder, seed=0):
    products = pd.DataFrame({"product_id": [f"p{n}" for n in range(6)], "prompt": PROMPTS})
    return write_query_files(generator, products, folder, SETTINGS, 24, seed)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_chunks_in_order_with_one_row_a_query(generator, tmp_path):
    paths = write(generator, tmp_path / "queries")
    assert [path.name for path in paths] == [f"queries-0000{n}.parquet" for n in range(3)]
    rows = pd.read_parquet(tmp_path / "queries")
    assert list(rows.columns) == ["product_id", "query"]
    assert rows["product_id"].tolist() == [f"p{n}" for n in range(6) for _ in range(3)]
    assert rows["query"].map(type).eq(str).all()
    assert rows["query"].nunique() > 6  # drawn, each chunk with a seed of its own


def test_two_processes_write_the_files_of_one(generator, tmp_path, monkeypatch):
    write(generator, tmp_path / "one")
    state = PartialState()
    written = []
    for rank in (0, 1):
        # The real thing waits for the other process; here one comes after the other.
        fake = type("Ranks", (), {"process_index": rank, "num_processes": 2})()
        fake.device = state.device
        monkeypatch.setattr(query_files, "PartialState", lambda fake=fake: fake)
        assert len(write(generator, tmp_path / "two")) == 3  # all paths, on every process
        written.append(len(contents(tmp_path / "two")))
    assert written == [2, 3]  # chunks 0 and 2, then 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_stop_within_a_chunk_costs_that_chunk(generator, tmp_path, monkeypatch):
    write(generator, tmp_path / "whole")
    sample, calls = query_files.sample_queries, []

    def stop_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*arguments)

    monkeypatch.setattr(query_files, "sample_queries", stop_at_the_second)
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        write(generator, folder)
    assert [path.name for path in folder.iterdir()] == ["queries-00000.parquet"]
    # Half a file, as a killed process leaves it, does not count as the chunk, nor as a table.
    half = folder / ".queries-00001.parquet.0.tmp"
    half.write_bytes(b"PAR1 and no more")
    write(generator, folder)
    assert len(calls) == 4
    assert len(pd.read_parquet(folder)) == 18
    half.unlink()
    assert contents(folder) == contents(tmp_path / "whole")


def test_jobs_that_write_the_same_chunk_do_not_break_each_other(tmp_path, monkeypatch):
    table, path = pd.DataFrame({"query": ["red chair"] * 3}), tmp_path / "queries-00000.parquet"
    write_whole, written = pd.DataFrame.to_parquet, []

    def write_while_another_does(frame, file, **options):
        written.append(file.name)
        if len(written) == 1:
            file.write(b"PAR1 and no more")
            write_parquet(path, table)  # the other job begins and ends meanwhile
            assert pd.read_parquet(path).equals(table)
            file.seek(0)
        write_whole(frame, file, **options)

    monkeypatch.setattr(pd.DataFrame, "to_parquet", write_while_another_does)
    write_parquet(path, table)
    assert len(set(written)) == 2
    assert pd.read_parquet(path).equals(table)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_whole_folder_needs_no_generator(generator, tmp_path):
    there = shutil.copytree(generator, tmp_path / "generator")
    before = write(there, tmp_path / "queries")[0].stat().st_mtime_ns
    shutil.rmtree(there)
    assert write(there, tmp_path / "queries")[0].stat().st_mtime_ns == before


def test_seeds_differ_and_may_be_large(generator, tmp_path):
    write(generator, tmp_path / "first", seed=0)
    write(generator, tmp_path / "second", seed=2**31)  # times a million: past NumPy's largest
    assert contents(tmp_path / "first") != contents(tmp_path / "second")


def test_a_stream_gives_the_files_of_a_table(generator, tmp_path):
    write(generator, tmp_path / "table")
    rows = [{"product_id": f"p{n}", "prompt": prompt} for n, prompt in enumerate(PROMPTS)]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    paths = write_query_files(generator, stream, tmp_path / "stream", SETTINGS, 24, 0)
    assert len(paths) == 3
    assert contents(tmp_path / "stream") == contents(tmp_path / "table")


def test_shards_of_unequal_jobs_write_each_chunk_once(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(query_files, "CHUNK_PRODUCTS", 1)  # six chunks
    write(generator, tmp_path / "one")
    device = PartialState().device
    jobs = [(0, 2, 0), (0, 2, 1), (1, 1, 0)]  # shard, processes of its job, rank: three machines
    written = []
    for shard, processes, rank in jobs:
        fake = SimpleNamespace(process_index=rank, num_processes=processes, device=device)
        monkeypatch.setattr(query_files, "PartialState", lambda fake=fake: fake)
        before = set(contents(tmp_path / "two")) if (tmp_path / "two").is_dir() else set()
        products = pd.DataFrame({"product_id": [f"p{n}" for n in range(6)], "prompt": PROMPTS})
        write_query_files(generator, products, tmp_path / "two", SETTINGS, 24, 0, shard, 2)
        written.append(sorted(set(contents(tmp_path / "two")) - before))
    names = [f"queries-0000{n}.parquet" for n in range(6)]
    assert written == [[names[0], names[4]], [names[2]], [names[1], names[3], names[5]]]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")

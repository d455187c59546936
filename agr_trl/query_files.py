"""Write queries for a catalogue of any size: chunk by chunk, over processes, resumable."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from accelerate import PartialState
from accelerate.utils import set_seed

from agr_trl.config import SamplingArguments
from agr_trl.data.tables import as_frame, open_parquet, reject
from agr_trl.errors import UserError
from agr_trl.files import write_parquet
from agr_trl.generator import load_generator, sample_queries
from agr_trl.runtime import wait_for_everyone

logger = logging.getLogger(__name__)

CHUNK_PRODUCTS = 2_000
QUERY_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("product_id", "document", "title", "query", "reason"), str),
    **dict.fromkeys(("round", "probability", "relevance"), (int, float)),
    "accepted": bool,
}


def read_queries(path: Path) -> pd.DataFrame:
    """Read the queries.parquet of a round; it may have more columns than QUERY_COLUMNS.

    Raises `UserError` for what is no Parquet file, lacks a column or holds something else in one.
    """
    with open_parquet(path) as file:
        table = as_frame(file.read())
    if missing := [name for name in QUERY_COLUMNS if name not in table]:
        raise UserError(f"{path} has no column {', '.join(missing)}; it is no round's queries")
    for name, kind in QUERY_COLUMNS.items():
        is_right = table[name].astype(object).map(lambda value, kind=kind: isinstance(value, kind))
        reject(path, table, ~is_right.astype(bool), name, "that is no round's query")
    return table


def write_query_files(
    generator: str | Path,
    prompts: pd.DataFrame | datasets.IterableDataset,
    folder: Path,
    settings: SamplingArguments,
    max_prompt_tokens: int,
    seed: int,
    shard_index: int = 0,
    num_shards: int = 1,
) -> list[Path]:
    """Write `queries-NNNNN.parquet` for each chunk of products and return all paths, in order.

    `prompts` has a prompt column; its other columns are repeated beside each `query`. Of jobs that
    know nothing of each other, shard s of k takes chunks s, s + k, ...; of these process r of the
    job's n takes every n-th, from the r-th on. A chunk that is there is skipped, and appears only
    when whole. Each has its own seed, so the files depend neither on who wrote them nor on stops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = PartialState()
    model: Any = None
    paths: list[Path] = []
    for number, chunk in enumerate(_chunks(prompts)):
        paths.append(folder / f"queries-{number:05d}.parquet")
        turn, shard = divmod(number, num_shards)
        is_mine = shard == shard_index and turn % state.num_processes == state.process_index
        if not is_mine or paths[number].is_file():
            continue
        if model is None:
            model, tokenizer = load_generator(str(generator))
            model.to(state.device)
        set_seed((seed * 1_000_003 + number) % 2**32)  # NumPy takes no seed beyond
        queries = sample_queries(
            model, tokenizer, chunk["prompt"].tolist(), settings, max_prompt_tokens
        )
        rows = chunk.drop(columns="prompt").assign(query=queries)
        write_parquet(paths[number], rows.explode("query", ignore_index=True))
        logger.info("chunk %d written", number + 1)
    wait_for_everyone()
    return paths


def _chunks(prompts: pd.DataFrame | datasets.IterableDataset) -> Iterator[pd.DataFrame]:
    if isinstance(prompts, pd.DataFrame):
        for begin in range(0, len(prompts), CHUNK_PRODUCTS):
            yield prompts.iloc[begin : begin + CHUNK_PRODUCTS]
    else:
        yield from map(pd.DataFrame, prompts.batch(CHUNK_PRODUCTS))

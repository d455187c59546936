"""Write queries for a catalogue of any size: chunk by chunk, over processes, resumable."""

import logging
from pathlib import Path

import pandas as pd
from accelerate import PartialState
from accelerate.utils import set_seed

from agr_trl.config import SamplingArguments
from agr_trl.generator import load_generator, sample_queries
from agr_trl.runtime import wait_for_everyone, write_parquet

logger = logging.getLogger(__name__)

CHUNK_PRODUCTS = 2_000


def write_query_files(
    generator: str | Path,
    prompts: pd.DataFrame,
    folder: Path,
    settings: SamplingArguments,
    max_prompt_tokens: int,
    seed: int,
) -> list[Path]:
    """Write `queries-NNNNN.parquet` for each chunk of products and return all paths, in order.

    `prompts` has a prompt column; its other columns are repeated beside each `query`. Process r of
    n takes chunks r, r + n, ...; a chunk that is there is skipped, and appears only when whole.
    Each chunk has its own seed, so the files depend neither on how many processes wrote them nor on
    stops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begins = range(0, len(prompts), CHUNK_PRODUCTS)
    paths = [folder / f"queries-{number:05d}.parquet" for number in range(len(begins))]
    state = PartialState()
    mine = range(state.process_index, len(paths), state.num_processes)
    missing = [number for number in mine if not paths[number].is_file()]
    if missing:
        model, tokenizer = load_generator(str(generator))
        model.to(state.device)
    for number in missing:
        set_seed((seed * 1_000_003 + number) % 2**32)  # NumPy takes no seed beyond
        chunk = prompts.iloc[begins[number] : begins[number] + CHUNK_PRODUCTS]
        queries = sample_queries(
            model, tokenizer, chunk["prompt"].tolist(), settings, max_prompt_tokens
        )
        rows = chunk.drop(columns="prompt").assign(query=queries)
        write_parquet(paths[number], rows.explode("query", ignore_index=True))
        logger.info("chunk %d of %d written", number + 1, len(paths))
    wait_for_everyone()
    return paths

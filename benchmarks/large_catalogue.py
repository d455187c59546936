"""Measure what a product costs, in catalogues of several sizes: docs/large_catalogues.md.

    python benchmarks/large_catalogue.py --products 1000 1000000 --output large_catalogue.json

Each figure is of a process of its own, on one core, in seconds of the processor rather than of the
clock, which is the same on a machine that does other work beside. The catalogues are those of
inputs.py: titles of ten words, one product in two with a description.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inputs import write_inputs
from measure import PROMPT_TOKENS, memory

from agr_trl.config import SamplingArguments
from agr_trl.data import load_relevance_dataset, stream_prompts
from agr_trl.generator import load_generator, sample_queries
from agr_trl.retriever import Retriever
from agr_trl.runtime import commit
from agr_trl.search import BM25Index

SEARCHES = 20
PRODUCTS_WRITTEN = 32  # a product's queries, and a pair's score, cost the same in any catalogue
PAIRS_SCORED = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--products", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--output", type=Path, help="write what was measured as JSON")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for products in options.products:
            folder = Path(place) / str(products)
            write_inputs(folder, products)
            write_beir(folder)
            for work in WORKS:
                if work in CATALOGUE_WORKS or products == options.products[0]:
                    rows.append({"work": work, "products": products} | run_once(work, folder))
                    print(json.dumps(rows[-1]))
    print(as_table(rows))
    if options.output:
        result = {"commit": commit(), "rows": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def write_beir(folder: Path) -> None:
    """Write the catalogue of inputs.py as a BEIR folder, with one judgement."""
    texts = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))["texts"]
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as corpus:
        for number, text in enumerate(texts):
            title, description = " ".join(text.split()[:10]), " ".join(text.split()[10:])
            row = {"_id": f"p{number}", "title": title, "text": description}
            corpus.write(json.dumps(row) + "\n")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": texts[0]}))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp0\t1\n")


def run_once(work: str, folder: Path) -> dict:
    """Run one work in a process of its own and return what it tells."""
    one_core = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, work, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | one_core | path)
    if done.returncode:
        sys.exit(f"{work} failed\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- The works, each (units, seconds of the processor, further numbers) --------------------------


def read(folder: Path):
    """Read the catalogue whole."""
    began = time.process_time()
    documents = load_relevance_dataset("beir", folder).documents
    return len(documents), time.process_time() - began, {}


def stream(folder: Path):
    """Read it product by product."""
    began = time.process_time()
    products = sum(1 for _ in stream_prompts("beir", str(folder)))
    return products, time.process_time() - began, {}


def index(folder: Path):
    """Build the BM25 index and write it."""
    texts = _texts(folder)
    began = time.process_time()
    BM25Index(texts).save(folder / "index", texts)
    seconds = time.process_time() - began
    size = sum(path.stat().st_size for path in (folder / "index").iterdir())
    return len(texts), seconds, {"bytes_on_disk": size}


def search(folder: Path):
    """Open the index and find the best 100 products of some queries."""
    began = time.process_time()
    opened = BM25Index.open(folder / "index", _texts(folder))
    seconds_to_open = time.process_time() - began
    queries = json.loads((folder / "queries.json").read_text(encoding="utf-8"))[:SEARCHES]
    began = time.process_time()
    opened.top(queries, 100)
    return SEARCHES, time.process_time() - began, {"seconds_to_open": seconds_to_open}


def write(folder: Path):
    """Write four queries of 16 tokens a product with a T5 of t5-small's shape."""
    model, tokenizer = load_generator(str(folder / "generator"))
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    settings = SamplingArguments(queries_per_product=4, max_query_tokens=16)
    prompts = _texts(folder)[:PRODUCTS_WRITTEN]
    began = time.process_time()
    sample_queries(model, tokenizer, prompts, settings, PROMPT_TOKENS)
    return len(prompts), time.process_time() - began, {}


def score(folder: Path):
    """Score pairs with a retriever of MiniLM-L6's shape."""
    retriever = Retriever.from_pretrained(str(folder / "retriever"))
    pairs = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))[:PAIRS_SCORED]
    queries, documents, _ = map(list, zip(*pairs, strict=True))
    began = time.process_time()
    retriever.score(queries, documents)
    return len(pairs), time.process_time() - began, {}


WORKS = {work.__name__: work for work in (read, stream, index, search, write, score)}
CATALOGUE_WORKS = ("read", "stream", "index", "search")


def _texts(folder: Path) -> list[str]:
    return json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))["texts"]


def as_table(rows: list[dict]) -> str:
    """Return the rows as Markdown, with the cost of one unit."""
    lines = ["| work | products | ms a unit | MiB more | else |", "|---|---|---|---|---|"]
    known = ("work", "products", "units", "seconds", "mib_more")
    for row in rows:
        others = ", ".join(
            f"{name} {value:,.2f}" for name, value in row.items() if name not in known
        )
        cells = [row["work"], f"{row['products']:,}", f"{1e3 * row['seconds'] / row['units']:.3f}"]
        lines.append(f"| {' | '.join([*cells, format(row['mib_more'], ',.0f'), others])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in WORKS:
        before = memory("VmRSS")
        units, seconds, more = WORKS[sys.argv[1]](Path(sys.argv[2]))
        told = {"units": units, "seconds": seconds, "mib_more": memory("VmHWM") - before}
        print(json.dumps(told | more))
    else:
        main()

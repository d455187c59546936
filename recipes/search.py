"""Search a catalogue: BM25 finds candidates, the retriever ranks them.

python recipes/search.py "cordless desk lamp" --retriever_name_or_path runs/demo/retriever
python recipes/search.py --interactive
"""

import sys
from dataclasses import dataclass, field

from agr_trl.config import DataArguments, SearchArguments, parse_recipe
from agr_trl.errors import UserError
from agr_trl.retriever import trained_retriever
from agr_trl.runtime import require_model, run_recipe, start
from agr_trl.search import ProductSearch, check_query, load_index
from agr_trl.stages import load_dataset
from agr_trl.terminal import terminal_text


@dataclass
class ScriptArguments:
    retriever_name_or_path: str = field(
        metadata={"help": "Model or folder that ranks the candidates"}
    )
    query: str = field(
        default="", metadata={"help": "What to search for; may also stand first, bare"}
    )
    interactive: bool = field(
        default=False, metadata={"help": "Read one query a line until an empty one"}
    )
    retriever_bfloat16: bool = field(
        default=False,
        metadata={"help": "Let the retriever score in bfloat16: faster where the machine can"},
    )
    index_dir: str | None = field(
        default=None,
        metadata={"help": "BM25 index on disk, built there once; default: built anew in memory"},
    )
    seed: int = field(default=0, metadata={"help": "Unused here; kept for every recipe"})


SECTIONS = {"": (DataArguments, SearchArguments, ScriptArguments)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__, first_word="query")
    start(recipe[""].values["seed"])
    data_args, search_args, args = recipe[""].build()
    if not args.query.strip() and not args.interactive:
        raise UserError('give a query, `search.py "desk lamp"`, or `--interactive`')
    if args.query.strip():
        check_query(args.query)
    require_model(args.retriever_name_or_path, "train_retriever", recipe.is_demo)

    dataset = load_dataset(data_args)
    retriever = trained_retriever(args.retriever_name_or_path).to_device()
    retriever.bfloat16 = args.retriever_bfloat16
    weight = search_args.blend_weight
    if weight is None:
        weight = retriever.blend_weight
    index = load_index(dataset.documents, args.index_dir)
    search = ProductSearch(dataset, index, retriever.score, weight)
    if args.query.strip():
        show(search, args.query, search_args)
    while args.interactive:
        query = read_query()
        if not query:
            return
        show(search, query, search_args)


def read_query() -> str:
    """Return the next query of the terminal or pipe, "" where there is no more."""
    try:
        line = input("query> ") if sys.stdin.isatty() else sys.stdin.readline()
    except EOFError:  # Ctrl-D
        line = ""
    except UnicodeDecodeError as error:
        raise UserError(f"the query is not UTF-8 text ({error}); type it in UTF-8") from None
    return line.strip()


def show(search: ProductSearch, query: str, args: SearchArguments) -> None:
    """Print the ranked products of one query."""
    found = search.search(query, k=args.top_k, candidates=args.candidates)
    if found.empty:
        print(f"no product shares a word with {query!r}")
        return
    table = found.assign(title=found["title"].str[:70])
    shown = table.to_string(index=False, float_format=lambda value: f"{value:.3f}")
    print(terminal_text(shown))


if __name__ == "__main__":
    run_recipe(main)

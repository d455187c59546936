"""Look at a finished run in a browser: search, attack a product, browse the rounds.

    python recipes/app.py
    python recipes/app.py runs/demo --port 7861
    python recipes/app.py runs/demo --push_to_space user/name

The page is served to this machine alone, asks nobody for anything, and needs `pip install -e
".[app]"`. A Space holds the run's models and queries and its data set too: products and judgements.
"""

from dataclasses import dataclass, field
from pathlib import Path

from agr_trl.app import serve
from agr_trl.config import parse_recipe
from agr_trl.hub import publish_space
from agr_trl.runtime import run_recipe, start


@dataclass
class ScriptArguments:
    run_dir: str = field(metadata={"help": "A finished run; may also stand first, bare"})
    dataset_path: str | None = field(
        default=None, metadata={"help": "Where the run's data set lies now (default: as it was)"}
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to serve on; 0.0.0.0 shows it to others"}
    )
    port: int = field(default=7860, metadata={"help": "Port to serve on"})
    push_to_space: str | None = field(
        default=None, metadata={"help": "user/name: publish the app on the Hub, do not serve it"}
    )
    private: bool = field(
        default=False, metadata={"help": "A new Space is private, a public one refused"}
    )
    licence: str = field(
        default="unknown",
        metadata={"help": "What a Space says, as the Hub writes it: apache-2.0"},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the queries that are written"})


SECTIONS = {"": (ScriptArguments,)}


def main() -> None:
    recipe = parse_recipe(SECTIONS, __file__, first_word="run_dir")
    start(recipe[""].values["seed"])
    (args,) = recipe[""].build()
    run_dir = Path(args.run_dir)
    if args.push_to_space:
        hub = {"private": args.private, "licence": args.licence}
        print(publish_space(run_dir, args.push_to_space, args.dataset_path, **hub))
    else:
        serve(run_dir, args.dataset_path, args.host, args.port)


if __name__ == "__main__":
    run_recipe(main)

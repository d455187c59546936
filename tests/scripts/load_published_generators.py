"""Load generators by their names on the Hub, then from the cache; write what came of it as JSON.

Arguments: a file for the answers, the names. The environment names the Hub.
"""

import json
import sys
from pathlib import Path

import torch
from huggingface_hub import constants

from agr_trl.errors import UserError
from agr_trl.generator import load_generator, weights_fingerprint


def main(output: Path, names: list[str]) -> None:
    answers = {}
    for place in ("hub", "cache"):
        constants.HF_HUB_OFFLINE = place == "cache"
        answers[place] = {name: loaded(name) for name in names}
    output.write_text(json.dumps(answers))


def loaded(name: str) -> str | list[float | str]:
    """Return the kind of a model, its weights' fingerprint and some logits; or what was wrong."""
    try:
        model, tokenizer = load_generator(name)
    except UserError as error:
        return str(error)
    inputs = tokenizer("Title: red oak chair - Description: ", return_tensors="pt")
    with torch.no_grad():
        answer = model.eval()(**inputs, decoder_input_ids=torch.tensor([[0]]))
    kind = type(model).__name__
    return [kind, weights_fingerprint(name), *answer.logits[0, 0, :8].tolist()]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""Read a catalogue product by product, for one that is larger than memory."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agr_trl.data.beir import CORPUS_FIELDS, read_text_rows
from agr_trl.data.dataset import document_text, prompt_text
from agr_trl.data.pairs import split_files
from agr_trl.data.tables import parquet_batches, read_json_lines, require_file
from agr_trl.errors import UserError

if TYPE_CHECKING:
    import datasets

STREAMED = ("beir", "pairs")


def stream_prompts(dataset_format: str, path: str | None) -> "datasets.IterableDataset":
    """Return rows of product_id, document and prompt, those of `RelevanceDataset.prompts()`.

    Reads a BEIR folder's corpus.jsonl, or the documents of pairs in Parquet or JSON Lines; queries
    and judgements are not looked at. Repeated ids of a BEIR catalogue are not noticed, and products
    without any text left out. Raises
    `UserError` for another format and, when it is read, for a row that is no product.
    """
    if dataset_format not in STREAMED:
        raise UserError(
            f"`streaming` reads {' and '.join(STREAMED)}, not {dataset_format}; convert the "
            "catalogue, or leave `--streaming` out"
        )
    import datasets

    files = _catalogue_files(dataset_format, path)
    read = _beir_products if dataset_format == "beir" else _pairs_products
    return datasets.IterableDataset.from_generator(read, gen_kwargs={"files": [tuple(files)]})


def files_fingerprint(dataset_format: str, path: str | None) -> str:
    """Return the sha256 (hex) of the files that `stream_prompts` reads."""
    digest = hashlib.sha256()
    for file in _catalogue_files(dataset_format, path):
        require_file(file)
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _catalogue_files(dataset_format: str, path: str | None) -> list[Path]:
    if path is None or not Path(path).exists():
        raise UserError(f"dataset_path {path} does not exist; `streaming` needs one")
    place = Path(path)
    if dataset_format == "beir":
        return [place / "corpus.jsonl"]
    return [place] if place.is_file() else split_files(place)


def _row(product_id: str, title: str, description: str = "") -> dict[str, str]:
    return {
        "product_id": product_id,
        "document": document_text(title, description),
        "prompt": prompt_text(title, description),
    }


def _beir_products(files: list[tuple[Path, ...]]) -> Iterator[dict[str, str]]:
    ((corpus,),) = files
    for line, (product_id, title, description) in read_text_rows(corpus, CORPUS_FIELDS):
        if not product_id:
            raise UserError(f"{corpus}, line {line}: a product needs an _id")
        if title + description:  # as `read_beir` does
            yield _row(product_id, title, description)


def _pairs_products(files: list[tuple[Path, ...]]) -> Iterator[dict[str, str]]:
    seen: set[int] = set()  # hashes: a document of many pairs is one product
    for file in files[0]:
        for line, document in _documents(file):
            if not isinstance(document, str) or not document.strip():
                raise UserError(f"{file}, row {line}: `document` is {document!r}; give it a text")
            document = document.strip()
            if hash(document) not in seen:
                yield _row(f"d{len(seen)}", document)
                seen.add(hash(document))


def _documents(file: Path) -> Iterator[tuple[int, object]]:
    if file.suffix == ".jsonl":
        for line, record in read_json_lines(file):
            yield line, record.get("document")
    elif file.suffix == ".parquet":
        for batch in parquet_batches(file, ["document"]):
            yield from batch["document"].items()
    else:
        raise UserError(f"`streaming` reads .parquet and .jsonl, not {file}; convert it")

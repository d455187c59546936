"""Fuzz the readers with atheris, which looks for inputs that reach new code (`make fuzz`).

python tests/scripts/fuzz_readers.py [libFuzzer's options, such as -max_total_time=600]

An input says how whole files are broken, as in broken_files.py. A finding ends the run with its
traceback and leaves the input in a file crash-…, which as an argument repeats it.
"""

import logging
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["agr_trl.data", "agr_trl.config", "yaml"]):
    from broken_files import PIECES, TARGETS, WAYS, broken

NAMES = sorted(TARGETS)


def read_broken_files(data: bytes) -> None:
    """Break the files of one reader as the input says, and have them read."""
    source = atheris.FuzzedDataProvider(data)
    target = TARGETS[source.PickValueInList(NAMES)]
    files = dict(target.files)
    for _ in range(source.ConsumeIntInRange(1, 4)):
        name, way = source.PickValueInList(sorted(files)), source.PickValueInList(list(WAYS))
        place, size = (source.ConsumeFloatInRange(0.0, 1.0) for _ in range(2))
        piece = source.PickValueInList([*PIECES, None])
        if piece is None:
            piece = source.ConsumeBytes(16)
        files[name] = broken(files[name], way, place, size, piece)
    with tempfile.TemporaryDirectory() as folder:
        target.check(files, Path(folder))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    atheris.Setup(sys.argv, read_broken_files)
    atheris.Fuzz()

"""How a contestant reads and times; it runs in every environment, so it imports nothing of ours."""

import json
import resource
import sys
import time
from pathlib import Path


def arguments():
    """Return what run.py tells a contestant: its name, the folder of inputs, and the sizes."""
    name, inputs, sizes = sys.argv[1:]
    return name, Path(inputs), json.loads(sizes)


def read(inputs, name):
    """Return the content of one JSON file that inputs.py wrote."""
    return json.loads((inputs / f"{name}.json").read_text(encoding="utf-8"))


def timed(work, repeats):
    """Return the seconds of each of `repeats` calls, after one that does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds


def tell(units, seconds, check=(), **more):
    """Print one line of JSON: units done in each of `seconds`, numbers that contestants share."""
    print(
        json.dumps(
            {
                "units": units,
                "seconds": list(seconds),
                "check": [float(value) for value in check],
                # Linux counts in KiB.
                "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                **more,
            }
        )
    )

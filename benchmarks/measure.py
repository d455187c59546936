"""How a contestant reads and times; it runs in every environment, so it imports nothing of ours."""

import json
import sys
import time
from pathlib import Path

PROMPT_TOKENS = 128  # of the longest product


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
                "peak_memory_mib": memory("VmHWM"),
                **more,
            }
        )
    )


def memory(kind):
    """Return this process's VmRSS (now) or VmHWM (at its peak) in MiB; Linux.

    Not `getrusage`, whose peak a process inherits from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(kind))) / 1024

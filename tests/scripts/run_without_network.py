"""Run a script as `python SCRIPT ...` would, and note every address beyond this machine it asks.

Arguments: a file for the addresses, the script, its arguments. What it asks is refused.
"""

import runpy
import sys
from pathlib import Path

LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", "None")


def refuse(event: str, arguments: tuple) -> None:
    """Refuse to look up or connect to anything but this machine."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):  # not a Unix socket's path
        host = arguments[1][0]
    else:
        return
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name not in LOOPBACK:
        with noted.open("a") as file:
            file.write(f"{name}\n")
        raise OSError(f"no network for {name}")


noted = Path(sys.argv[1])
noted.touch()
sys.argv = sys.argv[2:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
sys.addaudithook(refuse)
runpy.run_path(sys.argv[0], run_name="__main__")

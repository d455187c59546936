"""Print the oldest versions that pyproject.toml allows, as pip requirements: `make test-lowest`."""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


def lowest(requirement: Requirement) -> str:
    """Return `name==version` for the lower bound, the bare name where there is none."""
    bounds = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==")]
    return f"{requirement.name}=={bounds[0]}" if bounds else requirement.name


def main() -> None:
    project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    requirements = map(Requirement, listed)
    names = [lowest(one) for one in requirements if one.name != project["name"]]
    sys.stdout.write("\n".join(sorted(names)) + "\n")


if __name__ == "__main__":
    main()

"""Link what a distribution requires from one folder of packages into another, and nothing else.

    python link_requirements.py diffguard-pl FROM TO

The distribution is installed in TO; its requirements without its extras, and what they require in
turn, are looked for in FROM. The result is a clean environment, as pip would build it by unpacking
several gigabytes once more.
"""

import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

Found = dict[tuple[str, str], Distribution]
"""Distributions by name and extra; the extra is "" for the distribution alone."""


def installed(name: str, folder: str) -> Distribution:
    """A distribution by its name."""
    for found in distributions(name=name, path=[folder]):
        return found
    raise SystemExit(f"{name} is required, but not in {folder}")


def collect(of: Distribution, extra: str, folder: str, found: Found) -> None:
    """Add to `found` what a distribution requires with an extra, directly or not."""
    for line in of.requires or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ["", *requirement.extras]:
            key = (requirement.name, wanted)
            if key not in found:
                found[key] = installed(requirement.name, folder)
                collect(found[key], wanted, folder, found)


def link(of: Distribution, folder: Path) -> None:
    """Link the packages, modules and metadata of a distribution into a folder."""
    for top in {file.parts[0] for file in of.files or []} - {"..", "__pycache__"}:
        if not (folder / top).exists():
            (folder / top).symlink_to(Path(str(of.locate_file(top))).resolve())


if __name__ == "__main__":
    name, source, target = sys.argv[1:]
    found: Found = {}
    collect(installed(name, target), "", source, found)
    for distribution in found.values():
        link(distribution, Path(target))

"""An environment as a user has it: the zoo from a wheel, and of all other packages only those that it says it needs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def build(kinds: list[str], scratch: Path, out: Path) -> None:
    """Build what `python -m build` calls `kinds` of what git tracks, from a copy, so that the tree stays clean."""
    files = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True)
    for name in files.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(out), str(scratch)]
    subprocess.run(command, check=True, capture_output=True)


def make_environment(folder: Path, wheel: Path, extras: set[str], others: set[str]) -> Path:
    """A virtual environment with the wheel, what it requires with these extras, and other packages; its Python.

    Nothing is downloaded: required packages are links to this environment's, and nothing else of that is seen.
    """
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (info,) = site.glob("pretext_zoo-*.dist-info")
    needed = _required(PathDistribution(info), extras) + [distribution(name) for name in others]
    for name in others:
        needed += _required(distribution(name), set())
    links: dict[str, Path] = {}
    for found in needed:
        for file in found.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__"):
                links[top] = Path(str(found.locate_file(top)))
    for name, target in links.items():
        (site / name).symlink_to(target)
    return folder / "bin" / "python"


def _required(by: Distribution, extras: set[str]) -> list[Distribution]:
    """All that a distribution needs with these extras, and that is here."""
    found: dict[tuple[str, ...], Distribution] = {}
    wanted = [(by, extras)]
    while wanted:
        by, extras = wanted.pop()
        for requirement in map(Requirement, by.requires or ()):
            if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in (*extras, "")):
                continue
            key = requirement.name, *sorted(requirement.extras)
            if key in found:
                continue
            if requirement.name == by.name:  # extras of its own
                wanted.append((by, set(requirement.extras)))
                continue
            try:
                found[key] = distribution(requirement.name)
            except PackageNotFoundError:  # of another system
                continue
            wanted.append((found[key], set(requirement.extras)))
    return list(found.values())

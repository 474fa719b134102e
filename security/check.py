"""Check dependencies without a vulnerability service.

The installed set fits together, its versions are the pinned ones, and none is known to be unsafe.

    python security/check.py

1. `pip check`: no package lacks or contradicts another.
2. Every installed package that constraints.txt pins has that version, so that what was looked at is what runs.
3. No installed or pinned version lies below the fix of an advisory in advisories.toml, and rim_lens calls nothing that
   an advisory without a fix is about.
4. pyproject.toml admits no version below a fix, unless rim_lens calls nothing that the advisory is about.

It says how many advisories were confirmed at a source. Where a vulnerability service can be reached, `pip-audit` knows
more; its database cannot be had from a package index.
"""

import ast
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "rim_lens"
CONSTRAINTS = HERE.parent / "constraints.txt"
PROJECT = HERE.parent / "pyproject.toml"


def pinned(text: str) -> dict[str, str]:
    """Name and version of every line `name==version`."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return {canonicalize_name(name): version for name, _, version in (x.partition("==") for x in lines if "==" in x)}


def advisories() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The entries of advisories.toml: those with a fixed version, and those without."""
    document = tomllib.loads((HERE / "advisories.toml").read_text())
    return document["advisory"], document["unfixed"]


def called(folder: Path, unfixed: list[dict[str, Any]]) -> list[str]:
    """A line for every name in a folder's code that an advisory without a fix warns of."""
    names = {path: names_in(path) for path in sorted(folder.rglob("*.py"))}
    return [
        f"{path.relative_to(folder.parent)} uses {call} of {one['package']}: {one['what']} ({one['id']}); no version "
        "fixes it"
        for one in unfixed
        for call in one["calls"]
        for path, used in names.items()
        if call in used
    ]


def names_in(path: Path) -> set[str]:
    """Every name, attribute and imported name of a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        found |= {
            getattr(node, field) for field in ("id", "attr", "name") if isinstance(getattr(node, field, None), str)
        }
    return found


def unsafe(versions: dict[str, str], known: list[dict[str, Any]]) -> list[str]:
    """A line for every version that an advisory names."""
    found = []
    for one in known:
        version = versions.get(canonicalize_name(one["package"]))
        if version is not None and Version(version) < Version(one["fixed_in"]):
            found.append(f"{one['package']} {version}: {one['what']} ({one['id']}); fixed in {one['fixed_in']}")
    return found


def admitted(requirements: list[str], known: list[dict[str, Any]], folder: Path) -> list[str]:
    """A line for every requirement in a folder that a version without an advisory's fix satisfies."""
    met = [one for one in known if "calls" not in one or called(folder, [one])]
    return [
        f"{requirement} admits versions with {one['what']} ({one['id']}); ask for {one['fixed_in']} or newer"
        for requirement in map(Requirement, requirements)
        for one in met
        if canonicalize_name(one["package"]) == canonicalize_name(requirement.name)
        and not any(
            part.operator in (">=", "==") and Version(part.version) >= Version(one["fixed_in"])
            for part in requirement.specifier
        )
    ]


def required(project: dict[str, Any]) -> list[str]:
    """Every requirement of a project, its extras included."""
    return project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]


def unpinned(installed: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """A line for every installed package that has another version than the pinned one (local version labels aside)."""
    return [
        f"{name} {installed[name]} is installed but {version} is pinned"
        for name, version in wanted.items()
        if name in installed and Version(installed[name]).public != Version(version).public
    ]


def main() -> int:
    """Print what is wrong; 1 where anything is."""
    installed = {canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions()}
    wanted = pinned(CONSTRAINTS.read_text())
    known, unfixed = advisories()
    problems = unsafe(wanted, known) + unsafe(installed, known) + called(PACKAGE, unfixed) + unpinned(installed, wanted)
    problems += admitted(required(tomllib.loads(PROJECT.read_text())["project"]), known, PACKAGE)
    whole = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if whole.returncode:
        problems += whole.stdout.strip().splitlines()
    for line in dict.fromkeys(problems):
        print(line)
    if not problems:
        every = known + unfixed
        print(
            f"{len(installed)} packages: none below an advisory's fix ({len(every)} advisories, "
            f"{sum(one['checked'] for one in every)} of them confirmed at a source), pins kept, pip check clean"
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

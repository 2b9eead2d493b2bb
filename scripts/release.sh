#!/bin/sh
# Build what is published into dist/, and check it; nothing is sent anywhere.
# The wheel is built of the sdist. For each Python of PYTHONS (all of 3.11 to 3.14 that are here) it is installed
# by pip and by `uv tool install` into new folders; there it shows its version, and an edge answers.
set -eu
cd "$(dirname "$0")/.."
step=$PWD/scripts/step.sh
uv=$PWD/build/tools/bin/uv
unset PYTHONPATH

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
if ! grep -q "^## \[$version\]" CHANGELOG.md; then
    echo "CHANGELOG.md has no section [$version]" >&2
    exit 1
fi

rm -rf dist
tree=$(mktemp -d)
git ls-files -z | xargs -0 cp --parents --target-directory "$tree"
python3 scripts/index_readme.py >"$tree/README.md"
"$step" "sdist and wheel built" "$uv" build --quiet --out-dir dist --python .venv/bin/python \
    --build-constraints requirements/build.lock --require-hashes "$tree"
rm -rf "$tree"
rm -f dist/.gitignore
wheel=$PWD/dist/picospec-$version-py3-none-any.whl
for part in CHANGELOG.md configs/edge.toml docs/start.md picospec/main.py scripts/build.py; do
    tar tzf "dist/picospec-$version.tar.gz" "picospec-$version/$part" >/dev/null
done
if tar tzf "dist/picospec-$version.tar.gz" | grep -E '^[^/]*/(bench|tests|requirements|Makefile)'; then
    echo "the sdist has what only a clone needs" >&2
    exit 1
fi
"$step" "metadata checked" build/release/bin/twine check --strict dist/*

here() {
    for python in python3.11 python3.12 python3.13 python3.14; do
        if "$python" -c '' 2>/dev/null; then echo "$python"; fi
    done
}

# Try the programs in a folder: try FOLDER
try() {
    case $("$1/picospec" --version) in
    *"$version"*) ;;
    *)
        echo "$1/picospec --version does not show $version" >&2
        return 1
        ;;
    esac
    PICOSPEC_TEST_BIN=$1 .venv/bin/python -m pytest -q tests/packaging/test_wheel.py -k edge_answers
}

for python in ${PYTHONS:-$(here)}; do
    folder=$(mktemp -d)
    "$python" -m venv "$folder/pip"
    "$step" "installed by pip, $python" "$folder/pip/bin/python" -m pip install --quiet "$wheel"
    try "$folder/pip/bin"
    export UV_TOOL_DIR="$folder/tools" UV_TOOL_BIN_DIR="$folder/bin"
    "$step" "installed by uv, $python" "$uv" tool install --quiet --python "$python" "$wheel"
    try "$folder/bin"
    rm -rf "$folder"
done
ls -l dist

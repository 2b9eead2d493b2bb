#!/bin/sh
# Make .clients/ with an environment for each client that tests/clients tries: pinned, as users
# install them. Node 20 or newer is needed for two of them.
set -eu
cd "$(dirname "$0")/.."
mkdir -p .clients
for name in agents aider anthropic inspect-ai lm-eval ollama; do
    environment=".clients/$name"
    [ -x "$environment/bin/python" ] || .venv/bin/python -m venv "$environment"
    "$environment/bin/pip" install --quiet --requirement "tests/clients/requirements-$name.txt"
done
cp tests/clients/package.json .clients/package.json
(cd .clients && npm install --silent --no-audit --no-fund)
touch .clients/.ready

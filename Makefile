# make run     set up, fetch the models, start both ends on this machine, stay in front
# make test    set up, fetch the models, run every test in PARTS=3 processes; PARTS=0 starts no other
# make test-quick   the core: a virtual clock, no socket, process or model
# make test-clients   real OpenAI clients, each in an environment of its own (.clients/)
# make test-faults    faults in the middle of answers
#                     ARGS=--long adds to each suite what takes minutes
# make test-long      the long tests that are due by the record tests/long.toml, which it writes
# make mutants [ARGS="--count 60 --seed 1"]   breaks the product on purpose: what do quick tests notice?
# make check   formatting, lint, types, import rules
# make bench-smoke                      eight arms on a tiny model: shows that the bench works
# make run-vllm, make test-vllm         the same with vLLM (CPU) as the target, in .venv-vllm
# make test-image [IMAGE=cloud]         builds an image without a daemon, starts it, gets an answer (root)
# make test-vulkan                      llama.cpp's target on a device: Mesa's software Vulkan driver, built
#                                       once in ten minutes; the tests take as long
# make test-vllm-engines                 several engines and workers at once, which want a core each,
#                                       on both model runners
# make test-vllm-v2-short [VERSION=0.33.0]   vLLM's Model Runner V2 in Triton's interpreter, on a tiny model:
#                                       one head of several: the others with ARGS=--long
# make test-vllm-v2                     the same, and both judges on SmolLM2: half an hour there
# make test-vllm-matrix                 one identity test on several versions of vLLM
# make gpu-check [MODEL=NAME] [HEAD=JSON]   on a GPU host: judge, start-up, texts and speed in one report
# make gpu-check-quick [MODEL=NAME]     the most of it within ten minutes, our verifier first
# make gpu-kernels [PYTHON=python3]     on a GPU host with torch, but without vLLM: 90 seconds
# make docs                             builds the site of the documents, build/site/index.html
# make release                          builds sdist and wheel in dist/ and tries them: docs/release.md
# make lock [ARGS=--upgrade]            renews the lock files, see scripts/lock.sh
# make pin                              writes the digests of images and the commits of models, see scripts/pin.py;
#                                       IMAGE_REGISTRY names the host of images whose names have none
# make audit                            asks PyPI for advisories about the locked packages, with pipx
# make sbom                             writes build/sbom.json: what this package runs on
# make reference                        writes settings, metrics, commands, limits and deadlines of docs/ from the code
# make wheel                            builds dist/picospec-VERSION-py3-none-any.whl
# make wheels                           tells for which systems each dependency has a wheel
EDGE_PORT ?= 8000
VERIFIER_PORT ?= 9000
export EDGE_PORT VERIFIER_PORT

BIN := .venv/bin
SETUP := pyproject.toml $(wildcard scripts/*) $(wildcard requirements/*.lock)
STEP := scripts/step.sh
PULL := picospec models pull --config configs/local.toml

# Steps build on one another: the virtual environment, then the models, then the work.
.NOTPARALLEL:
.PHONY: setup run test check models clean bench-smoke run-vllm test-vllm test-vllm-matrix

setup: .venv/.ready-run

.venv/.ready-run: $(SETUP)
	@scripts/setup.sh run

.venv/.ready-dev: $(SETUP)
	@scripts/setup.sh dev

models: setup
	@$(STEP) "models ready" $(BIN)/$(PULL) qwen2.5-coder

run: models
	@exec $(BIN)/picospec up --config configs/local.toml

test: .venv/.ready-dev models
	@$(STEP) "small model ready" $(BIN)/$(PULL) smollm2
	@$(STEP) "tests" $(BIN)/pytest -n $(or $(PARTS),3) --dist loadfile \
		-m "not clients and not faults and not images" $(ARGS)

# Core tests: those that start nothing, see tests/guards.py.
QUICK := not (models or vllm or clients or faults or images or system)

.PHONY: test-quick
test-quick: .venv/.ready-dev
	@$(STEP) "quick tests" $(BIN)/pytest -n $(or $(PARTS),3) --dist worksteal -q -m "$(QUICK)" $(ARGS)

.PHONY: mutants
mutants: .venv/.ready-dev
	@$(BIN)/python scripts/mutants.py $(ARGS)

# What runs on three systems; vLLM's plugin and the bench are for Linux.
ROOMS := $(addprefix -p ,edge_agent gateway local_models picospec speculation verifier) \
	--exclude '^verifier/vllm_target/'

# What keeps to the rule of CONTRIBUTING.md: all documents, and the texts that users see.
PLAIN = $(wildcard *.md docs/*.md) $(shell git ls-files 'edge_agent/*.py' 'gateway/*.py' 'local_models/*.py' 'picospec/*.py' 'verifier/*.py')

check: .venv/.ready-dev
	@$(STEP) "lint" $(BIN)/ruff check .
	@$(STEP) "format" $(BIN)/ruff format --check .
	@$(STEP) "types" $(BIN)/mypy
	@$(STEP) "types on macOS" $(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin $(ROOMS)
	@$(STEP) "types on Windows" $(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 $(ROOMS)
	@$(STEP) "imports" $(BIN)/lint-imports
	@$(STEP) "prose" $(BIN)/python scripts/prose.py $(PLAIN)

BENCH_OUT ?= build/bench-smoke
BENCH_ARMS := cloud,picospec,picospec-separate,picospec-nofill,sync,paper,colocated,edge-only

bench-smoke: setup
	@$(STEP) "small model ready" $(BIN)/$(PULL) smollm2
	@mkdir -p $(BENCH_OUT)
	@$(STEP) "bench" $(BIN)/python -m bench run --json $(BENCH_OUT)/out.json \
		--target-model smollm2 --draft-model smollm2 --arms $(BENCH_ARMS) --rtt 10,50 \
		--families code,chat --per-family 1 --tokens 16 $(ARGS)
	@$(STEP) "report" $(BIN)/python -m bench report --no-plots $(BENCH_OUT)/out.json

build/%/.ready: .venv/.ready-run
	@$(STEP) "$* installed" scripts/setup-tools.sh $*

.PHONY: audit docs lock pin release sbom wheel wheels
docs: build/docs/.ready
	@$(STEP) "site built in build/site" scripts/docs.sh

# It needs Python and pip alone: nothing is compiled.
build/build/.ready: requirements/build.lock
	@$(STEP) "pip and setuptools installed" scripts/setup-tools.sh build

wheel: build/build/.ready
	@$(STEP) "wheel built" scripts/build-wheel.sh build/build/bin/python dist

wheels: setup
	@$(BIN)/python scripts/wheels.py

release: .venv/.ready-dev build/release/.ready build/tools/.ready
	@$(STEP) "release built and tried" scripts/release.sh

lock: build/tools/.ready
	@$(STEP) "lock files renewed" scripts/lock.sh $(ARGS)

.PHONY: reference
reference: setup
	@$(STEP) "references written" $(BIN)/python scripts/reference.py

pin: setup
	@$(STEP) "images and models pinned" $(BIN)/python scripts/pin.py $(ARGS)

audit:
	@$(STEP) "locks audited" pipx run pip-audit --disable-pip --require-hashes --requirement requirements/run.lock

sbom: build/tools/.ready
	@$(STEP) "SBOM written" build/tools/bin/cyclonedx-py requirements requirements/run.lock \
		--pyproject pyproject.toml --output-reproducible --output-format JSON --output-file build/sbom.json

VLLM := .venv-vllm/bin
VLLM_VERSIONS ?= 0.33.0
SAFETENSORS := $(or $(PICOSPEC_CACHE),$(HOME)/.cache/picospec)/safetensors

.venv-vllm/.ready-run: $(SETUP)
	@scripts/setup-vllm.sh run

.venv-vllm/.ready-dev: $(SETUP)
	@scripts/setup-vllm.sh dev

run-vllm: .venv-vllm/.ready-run
	@$(STEP) "models ready" $(VLLM)/$(PULL) qwen2.5-coder
	@PICOSPEC_VERIFIER__MODEL=$(SAFETENSORS)/qwen2.5-coder-1.5b \
		exec $(VLLM)/picospec up --config configs/local-vllm.toml

test-vllm: .venv-vllm/.ready-dev
	@PICOSPEC_TEST_SAFETENSORS=$(SAFETENSORS)/smollm2-135m \
		$(STEP) "tests on vLLM" $(VLLM)/pytest tests/verifier/vllm_target tests/packaging/test_beside_vllm.py \
		tests/bench/test_gpu_check.py tests/bench/test_pace.py $(ARGS)

.PHONY: test-vulkan
test-vulkan: .venv/.ready-dev
	@$(STEP) "small model ready" $(BIN)/$(PULL) smollm2
	@$(STEP) "tests on Vulkan" scripts/vulkan.sh $(BIN)/pytest --long tests/verifier/test_llama_device.py $(ARGS)

.PHONY: test-vllm-engines
test-vllm-engines: .venv-vllm/.ready-dev
	@PICOSPEC_TEST_WORKERS=2 $(STEP) "several engines and workers of vLLM" $(VLLM)/pytest --long $(ENGINES) $(ARGS)
	@$(ON_V2) PICOSPEC_TEST_WORKERS=2 $(STEP) "the same on Model Runner V2" \
		$(VLLM)/pytest --long -W default $(ENGINES) $(TWO_WORKERS) $(ARGS)

# Triton's interpreter and its backend are for these tests only: installed, they would break V1.
V2 := tests/verifier/vllm_target/v2
ON_V2 = PYTHONPATH="$(if $(VERSION),$$(scripts/vllm-path.sh $(VERSION)):)$(CURDIR)/$(V2)/interpreter" TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 \
	VLLM_PLUGINS=interpreted,picospec PICOSPEC_TEST_SAFETENSORS=$(SAFETENSORS)/smollm2-135m
ENGINES := tests/verifier/vllm_target/test_adapters.py
TWO_WORKERS := $(foreach T,0 1,"$(V2)/test_sessions.py::test_eight_sessions_of_different_drafts_at_once[T=$(T)]")
ON_SMOLLM2 := tests/verifier/vllm_target/test_identity.py

.PHONY: test-vllm-v2 test-vllm-v2-short
test-vllm-v2-short: .venv-vllm/.ready-dev
	@$(ON_V2) $(STEP) "tests on Model Runner V2" $(VLLM)/pytest -W default $(V2) \
		$(addprefix tests/verifier/vllm_target/test_, adapters.py operators.py patches.py) $(ARGS)

test-vllm-v2: test-vllm-v2-short
	@$(ON_V2) $(STEP) "SmolLM2 on Model Runner V2" $(VLLM)/pytest --long -W default $(ON_SMOLLM2) $(ARGS)

test-clients: test-clients-ready models
	@$(STEP) "tests of clients" $(BIN)/pytest tests/clients $(ARGS)

.PHONY: test-clients test-clients-ready
test-clients-ready: .venv/.ready-dev
	@$(STEP) "clients installed" scripts/setup-clients.sh

.PHONY: test-faults
test-faults: .venv/.ready-dev
	@$(STEP) "small model ready" $(BIN)/$(PULL) smollm2
	@$(STEP) "fault campaign" $(BIN)/pytest tests/faults $(ARGS)

.PHONY: test-long
test-long: .venv/.ready-dev
	@$(BIN)/python scripts/long_tests.py $(ARGS)

.PHONY: test-image
test-image: .venv/.ready-dev
	@$(STEP) "small model ready" $(BIN)/$(PULL) smollm2
	@scripts/test-image.sh $(IMAGE)

test-vllm-matrix: .venv-vllm/.ready-dev
	@PICOSPEC_TEST_SAFETENSORS=$(SAFETENSORS)/smollm2-135m scripts/vllm-matrix.sh $(VLLM_VERSIONS)

VLLM_GPU := .venv-vllm-gpu/bin
MODEL ?= Qwen/Qwen2.5-Coder-7B-Instruct
GPU_REPORT ?= build/gpu-check.md

.venv-vllm-gpu/.ready-gpu: $(SETUP) Dockerfile.cloud
	@scripts/setup-vllm.sh gpu

# More options go through ARGS; the last of two wins.
.PHONY: gpu-check
gpu-check: .venv-vllm-gpu/.ready-gpu
	@$(STEP) "draft model ready" $(VLLM_GPU)/$(PULL) --as draft qwen2.5-coder
	@[ -d "$(MODEL)" ] || $(STEP) "target ready" $(VLLM_GPU)/hf download "$(MODEL)" >/dev/null
	@$(VLLM_GPU)/python -m bench.gpu_check --target-model "$(MODEL)" --out $(GPU_REPORT) \
		--vllm.kv-cache-memory-bytes 4294967296 $(if $(HEAD),--head '$(HEAD)') $(ARGS)

.PHONY: gpu-check-quick gpu-kernels
gpu-check-quick: .venv-vllm-gpu/.ready-gpu
	@[ -d "$(MODEL)" ] || $(STEP) "target ready" $(VLLM_GPU)/hf download "$(MODEL)" >/dev/null
	@$(VLLM_GPU)/python -m bench.gpu_check --quick --target-model "$(MODEL)" --out $(GPU_REPORT) $(ARGS)

gpu-kernels:
	@PYTHONPATH="$(CURDIR)" $(or $(PYTHON),python3) -m bench.gpu_check.kernels $(ARGS)

clean:
	rm -rf .venv .venv-vllm .venv-vllm-gpu build dist *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each target does its own set-up: a virtual environment in the clone, with CPU wheels.
# `make PYTHON=/path/to/python3.12 ...` chooses the interpreter.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
WORKDIR ?= runs/quickstart
GPU_PYTHON ?= python3

.PHONY: help quickstart test test-slow chaos lint format bench-cpu bench-decode bench-speculative bench-pipeline bench-pod bench-curate bench-extract bench-minhash bench-scale bench-gpu kernel-card bench-targets bench-first-loss parity clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

quickstart: $(VENV)/quickstart ## the whole line on a laptop: documents to an evaluated model (about 5 minutes)
	$(BIN)/python launch.py --config=experiments/quickstart.py --workdir=$(WORKDIR)

test: $(VENV)/test ## all tests that take seconds
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m "not slow" --durations=10 -n auto --maxprocesses=4 --dist loadscope

test-slow: $(VENV)/test $(VENV)/cluster ## the others
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m slow

lint: $(VENV)/test ## style, unused names, formatting; shell and YAML
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources .ci/run benchmarks/*.sh deploy/*/*.sh deploy/*/*.sbatch
	$(BIN)/yamllint --strict .yamllint deploy

format: $(VENV)/test ## puts the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: $(VENV)/test $(VENV)-parity/datasets ## logits and token ids beside Hugging Face transformers, corpora beside datasets, in an environment of their own
	PYTHONPATH=tests JAX_PLATFORMS=cpu $(BIN)/python tests/parity/run.py --peer-python=$(VENV)-parity/bin/python
	$(VENV)-parity/bin/python tests/parity/chat.py --check
	PYTHONPATH=. $(BIN)/python tests/parity/corpus.py --peer-python=$(VENV)-parity/bin/python

chaos: $(VENV)/test ## 240 kills and 1,500 corruptions of real runs (under an hour; goes on where it was stopped)
	PYTHONPATH=.:tests $(BIN)/python tests/chaos/run.py

bench-cpu: $(VENV)-parity/ready ## training throughput beside the same model in PyTorch
	JAX_PLATFORMS=cpu $(BIN)/python benchmarks/cpu_throughput.py --peer-python=$(VENV)-parity/bin/python

bench-decode: $(VENV)-parity/ready ## tokens a second of greedy decoding beside transformers.generate
	JAX_PLATFORMS=cpu $(BIN)/python benchmarks/decode.py --peer-python=$(VENV)-parity/bin/python

bench-speculative: $(VENV)/test ## greedy decoding with drafts by the model's own modules beside decoding without (trains two quickstarts)
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 JAX_PLATFORMS=cpu $(BIN)/python benchmarks/speculative.py

bench-pipeline: $(VENV)-parity/ready ## tokens a second from shards to batches beside Grain and PyTorch's DataLoader
	$(BIN)/python benchmarks/pipeline.py --peer-python=$(VENV)-parity/bin/python

bench-pod: $(VENV)/test ## SmolLM3-3B's step compiled for 256 chips beside MaxText's (MAXTEXT=a checkout of it, MAXTEXT_PYTHON=an interpreter with its packages)
	JAX_PLATFORMS=cpu $(BIN)/python benchmarks/pod_step.py --maxtext=$(MAXTEXT) --maxtext-python=$(MAXTEXT_PYTHON)

bench-curate: $(VENV)/test $(VENV)-datatrove/ready ## FineWeb's rules beside datatrove's (DOCUMENTS=what benchmarks/documents.py makes)
	PYTHONPATH=. $(BIN)/python benchmarks/curate.py --documents=$(DOCUMENTS) --peer-python=$(VENV)-datatrove/bin/python

bench-extract: $(VENV)/test $(VENV)-datatrove/ready ## main text of gold pages beside datatrove's (PAGES=a clone of scrapinghub/article-extraction-benchmark)
	PYTHONPATH=. $(BIN)/python benchmarks/extract.py --pages=$(PAGES) --peer-python=$(VENV)-datatrove/bin/python

bench-minhash: $(VENV)/test $(VENV)-datatrove/ready ## signatures and clusters beside datatrove's, and the curve of what is found (DOCUMENTS as above)
	PYTHONPATH=. $(BIN)/python benchmarks/minhash.py --documents=$(DOCUMENTS) --peer-python=$(VENV)-datatrove/bin/python
	PYTHONPATH=. $(BIN)/python benchmarks/near_duplicates.py $(DOCUMENTS)

bench-scale: $(VENV)/test ## seconds and memory of a million documents, two workers beside one (DOCUMENTS as above; half an hour)
	PYTHONPATH=. $(BIN)/python benchmarks/curate_scale.py $(if $(DOCUMENTS),--documents=$(DOCUMENTS))

bench-gpu: ## GPU kernels beside cuDNN and JAX's own, on a machine with a GPU (10 minutes; GPU_PYTHON has jax[cuda13], absl-py and optax); Muon beside PyTorch's (MUON, SPEEDRUN, TORCH_PYTHON)
	PYTHONPATH=. $(GPU_PYTHON) benchmarks/gpu.py
	PYTHONPATH=. $(GPU_PYTHON) benchmarks/muon_gpu.py $(if $(MUON),--muon=$(MUON)) $(if $(SPEEDRUN),--speedrun=$(SPEEDRUN)) $(if $(TORCH_PYTHON),--torch-python=$(TORCH_PYTHON))

kernel-card: $(VENV)/test ## docs/kernels.md: errors of every kernel, and what the TPU's compiler says of it (half an hour)
	PYTHONPATH=. JAX_PLATFORMS=cpu $(BIN)/python benchmarks/kernel_card.py

bench-targets: $(VENV)/test ## a teacher's stored distributions: bias of the gradient, bytes a token, time of a step (WORKDIR=a finished run of the quickstart)
	PYTHONPATH=. JAX_PLATFORMS=cpu $(BIN)/python benchmarks/teacher_targets.py --workdir=$(WORKDIR)

bench-first-loss: ## seconds from a fresh clone to the first loss, and to the end
	bash benchmarks/first_loss.sh

clean: ## removes the virtual environments
	rm -rf $(VENV) $(VENV)-parity $(VENV)-datatrove

$(VENV)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/quickstart: $(VENV)/python setup.py
	@echo "installing the CPU packages into $(VENV) (about a minute)"
	$(PIP) install --editable .
	@touch $@

$(VENV)/test: $(VENV)/python setup.py
	@echo "installing the packages for tests into $(VENV) (about a minute)"
	$(PIP) install --editable '.[test]'
	@touch $@ $(VENV)/quickstart

$(VENV)/cluster: $(VENV)/test
	$(PIP) install --editable '.[cluster]'
	@touch $@

$(VENV)-datatrove/ready:
	$(PYTHON) -m venv $(VENV)-datatrove
	$(VENV)-datatrove/bin/python -m pip --quiet install 'datatrove[processing]==0.10.1' spacy==3.8.18 fasttext-numpy2-wheel fasteners 'trafilatura<1.12' lxml_html_clean
	@touch $@

$(VENV)-parity/ready: $(VENV)/quickstart
	$(PYTHON) -m venv $(VENV)-parity
	$(VENV)-parity/bin/python -m pip --quiet install torch==2.13.0 transformers==5.23.0 numpy
	@touch $@

$(VENV)-parity/datasets: $(VENV)-parity/ready
	$(VENV)-parity/bin/python -m pip --quiet install datasets==5.2.0
	@touch $@

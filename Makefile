# mcjepa. `make` lists the targets; every one sets up .venv by itself.
VENV ?= .venv
OUT ?= outputs/quickstart
JOBS ?= 2
BIN := $(VENV)/bin
SETTINGS := pyproject.toml requirements.lock install.sh
export VENV

.DEFAULT_GOAL := help
.PHONY: help quickstart test check lint format fast-tests docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.samples ## the main job on embedded defaults, in minutes (OUT=DIR)
	@$(BIN)/mcjepa quickstart --out "$(OUT)"

test: $(VENV)/.test ## all tests, two at a time (JOBS=N), then those that need the whole machine
	@export OMP_NUM_THREADS=1; $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup -m "not alone"; found=$$?; \
		$(BIN)/python -m pytest -q -m alone && exit $$found

check: lint fast-tests ## ruff, mypy and the fast tests

lint: $(VENV)/.dev ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

fast-tests: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup -m "not slow and not e2e"

format: $(VENV)/.dev ## let ruff format and sort
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: $(VENV)/.docs ## the pages of docs/ as a site in build/site; a dead link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # --quiet would hide warnings from --strict too

bench: $(VENV)/.dev ## every measurement in benchmarks/, shortly, as one table
	@$(BIN)/python -m benchmarks.table

clean: ## remove .venv and caches; results stay
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info

$(VENV)/.samples $(VENV)/.test $(VENV)/.dev $(VENV)/.docs: $(SETTINGS)
	@./install.sh $(subst .,,$(notdir $@))
	@touch $@

# On a fresh machine, run `make demo` or `make test`. `make campaign` runs the long tests.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST := $(VENV)/lowest
# Unpacked, not installed: Debian's package would start a server.
PROMETHEUS := $(abspath $(VENV))/prometheus/usr/bin

PYTEST := -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
QUICK := not campaign
# The lowest versions run all quick tests that do not start Ray.
WITHOUT_RAY := $(QUICK) and not ray

export PATH := $(PATH):$(PROMETHEUS)
.PHONY: demo test campaign lowest lint clean
.NOTPARALLEL:

demo: $(VENV)/.demo
	$(BIN)/python jobs/demo.py --output out/demo

test: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m "$(QUICK)"

campaign: $(VENV)/.test lowest
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium >/dev/null; } \
		|| echo "no chromium here: the tests that open a report in a browser will be skipped"
	@command -v prometheus >/dev/null || { command -v apt-get >/dev/null && cd $(VENV) \
		&& { [ "$$(id -u)" != 0 ] || apt-get -qq update; } && apt-get -qq download prometheus 2>/dev/null \
		&& dpkg --extract prometheus_*.deb prometheus; } \
		|| echo "no prometheus here: the tests of metrics, dashboard and alerts will be skipped"
	$(BIN)/python $(PYTEST) -m campaign

lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python $(PYTEST) -W ignore::DeprecationWarning -m "$(WITHOUT_RAY)"

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

# An extra, with everything that the demo needs.
$(VENV)/.test $(VENV)/.lint: $(VENV)/.%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $(VENV)/.demo $@

# Each direct dependency at the lowest version that pyproject.toml allows, with the newest versions
# of their own dependencies. Except torch, which is the pinned version from pip's index: on Linux,
# every version on PyPI brings gigabytes of CUDA.
$(LOWEST)/.installed: pyproject.toml
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --constraint constraints.txt torch uv
	sed -E '/^requires/!s/>=([0-9.]+)/==\1.*/g; s/"torch=.*"/"torch"/' pyproject.toml > $(LOWEST)/pyproject.toml
	$(LOWEST)/bin/uv pip install --quiet --compile-bytecode --python $(LOWEST) --resolution lowest-direct \
		--requirements $(LOWEST)/pyproject.toml --extra test --editable .
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info

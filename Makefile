# Two commands do everything on a fresh machine: `make demo` and `make test`. `make campaign` runs the long tests.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Unpacked rather than installed: Debian's package would start a server.
PROMETHEUS := $(abspath $(VENV))/prometheus/usr/bin

PYTEST := -m pytest --numprocesses 2 --dist loadfile
QUICK := not campaign

export PATH := $(PATH):$(PROMETHEUS)
.PHONY: demo test campaign lint clean
.NOTPARALLEL:

demo: $(VENV)/.demo
	$(BIN)/python jobs/demo.py --output out/demo

test: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m "$(QUICK)"

campaign: $(VENV)/.test
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium >/dev/null; } \
		|| echo "no chromium here: the tests that open a report in a browser will be skipped"
	@command -v prometheus >/dev/null || { command -v apt-get >/dev/null && cd $(VENV) \
		&& { [ "$$(id -u)" != 0 ] || apt-get -qq update; } && apt-get -qq download prometheus 2>/dev/null \
		&& dpkg --extract prometheus_*.deb prometheus; } \
		|| echo "no prometheus here: the tests of metrics, dashboard and alerts will be skipped"
	$(BIN)/python $(PYTEST) -m campaign

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

# What an extra adds; it holds all that the demo needs, too.
$(VENV)/.test $(VENV)/.lint: $(VENV)/.%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $(VENV)/.demo $@

clean:
	rm -rf $(VENV) out build *.egg-info

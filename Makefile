# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Unpacked rather than installed: Debian's package would start a server.
PROMETHEUS := $(abspath $(VENV))/prometheus/usr/bin

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/python jobs/demo.py --output out/demo

test: $(VENV)/.installed
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium >/dev/null; } \
		|| echo "no chromium here: the test that opens the report in a browser will be skipped"
	@command -v prometheus >/dev/null || [ -x $(PROMETHEUS)/prometheus ] || { command -v apt-get >/dev/null && cd $(VENV) \
		&& { [ "$$(id -u)" != 0 ] || apt-get -qq update; } && apt-get -qq download prometheus 2>/dev/null \
		&& dpkg --extract prometheus_*.deb prometheus; } \
		|| echo "no prometheus here: the tests of metrics, dashboard and alerts will be skipped"
	PATH="$$PATH:$(PROMETHEUS)" $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed
DEMO = $(VENV)/.installed-demo
TIMM = .venv-timm
TPU = .venv-tpu
MIN = .venv-min
NEWEST = .venv-newest
AUDIT = .venv-audit
# The newest Python of those tested that runs: on PATH, or one of pyenv's that is not switched on.
PYTHON_NEWEST ?= $(shell pyenv=$${PYENV_ROOT:-$$HOME/.pyenv}/versions; \
	for python in python3.13 python3.12 $$pyenv/3.13.*/bin/python $$pyenv/3.12.*/bin/python; do \
	$$python -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)

.PHONY: demo test test-fast test-timm test-tpu test-min test-newest audit lint docs clean

demo: $(DEMO)  ## train on real images, carry the weights into PyTorch, prove both models equal
	$(RUN) examples/demo.py

test: $(INSTALLED)  ## the whole suite
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

test-fast: $(INSTALLED)  ## the quick tests, in a few minutes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

test-timm: $(TIMM)/.installed  ## our models in timm's registry; timm needs torchvision, so in an environment of its own
	OMP_NUM_THREADS=1 $(TIMM)/bin/python -m pytest -o filterwarnings= tests/timm

test-tpu: $(TPU)/.installed  ## compile for TPUs that are not there; with libtpu JAX would look for a TPU, so apart
	OMP_NUM_THREADS=1 $(TPU)/bin/python -m pytest -o filterwarnings= tests/tpu

test-min: $(MIN)/.installed  ## part of the suite with the oldest versions that pyproject.toml admits
	OMP_NUM_THREADS=1 $(MIN)/bin/python -m pytest -n 2 --junitxml=$(MIN)/tests.xml -o filterwarnings= @tests/oldest.txt

test-newest: $(NEWEST)/.installed  ## the tests that need no PyTorch, with the newest JAX and a Python that it needs
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n 2 --junitxml=$(NEWEST)/tests.xml @tests/newest.txt

audit: $(AUDIT)/.installed  ## known vulnerabilities of the pinned versions; --strict: what cannot be looked up fails
	$(AUDIT)/bin/python -m pip_audit --strict --disable-pip --no-deps -r constraints.txt

lint: $(INSTALLED)  ## style and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

docs: $(INSTALLED)  ## the site of docs/ into site/, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

$(INSTALLED): pyproject.toml packaging/parity/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e packaging/parity -e ".[dev]"
	touch $@

$(DEMO): pyproject.toml packaging/parity/pyproject.toml constraints.txt  # less than the tests need; `make test` adds the rest to the same place
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e packaging/parity -e ".[demo]"
	touch $@

$(TIMM)/.installed: constraints-timm.txt
	$(PYTHON) -m venv $(TIMM)
	$(TIMM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-timm.txt \
		torch torchvision timm safetensors hypothesis pytest
	touch $@

$(TPU)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TPU)
	$(TPU)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[tpu]" hypothesis pytest
	touch $@

$(MIN)/.installed: pyproject.toml packaging/parity/pyproject.toml constraints-min.txt
	$(PYTHON) -m venv $(MIN)
	$(MIN)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-min.txt \
		-e packaging/parity -e ".[demo,hub,onnx,parquet,tensorboard]" hypothesis jsonschema pytest pytest-xdist
	touch $@

$(NEWEST)/.installed: pyproject.toml constraints-newest.txt
	@test -n "$(PYTHON_NEWEST)" || { echo "test-newest needs Python 3.12 or 3.13 (PYTHON_NEWEST=/path/to/python)"; exit 1; }
	$(PYTHON_NEWEST) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-newest.txt \
		-e ".[hub,jax,tensorboard]" hypothesis pytest pytest-xdist scikit-learn
	touch $@

$(AUDIT)/.installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.10"
	touch $@

clean:
	rm -rf $(VENV) $(TIMM) $(TPU) $(MIN) $(NEWEST) $(AUDIT) demo site

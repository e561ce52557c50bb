# make setup, make demo, make test: from a clone to a table of embeddings, and to the passed tests.

PYTHON ?= python3
IMAGES ?= demo-output/images
MODEL_NAME ?= $(CURDIR)/demo-output/checkpoint
TABLE ?= $(CURDIR)/demo-output/vectors

# The environment's own programs, whatever is on the PATH; a JVM starts workers by PYSPARK_PYTHON.
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/installed
export PYSPARK_PYTHON := $(BIN)/python
export PYSPARK_DRIVER_PYTHON := $(BIN)/python

.PHONY: setup demo train-demo test clean python java
.DEFAULT_GOAL := help
.PHONY: help

help:
	@echo "make demo    embeds images into a Delta table and shows it"
	@echo "             MODEL_NAME=..., IMAGES=folder and TABLE=path choose others"
	@echo "make test    checks style, types and behaviour"
	@echo "make setup   only makes .venv"
	@echo "make train-demo  trains the demonstration's checkpoints again, in half an hour"
	@echo "make clean   removes .venv and demo-output"

python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed; say which: make PYTHON=/path/to/python3.11"; exit 1; }

java: python
	@$(PYTHON) -m spark_vision.java

setup: python $(STAMP)

$(STAMP): pyproject.toml constraints.txt | python
	@echo "installing into .venv; the first time takes some minutes and 6 GB"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --editable ".[spark,dev]" --constraint constraints.txt
	@touch $(STAMP)

demo: java setup
	@$(BIN)/python -m spark_vision.demo demo-output
	@$(BIN)/spark-submit --master "local[*]" \
		--packages "$$($(BIN)/python -m spark_vision.session)" \
		jobs/embed_images.py --input "$(IMAGES)" --table "$(TABLE)" --model-name "$(MODEL_NAME)" \
		--keep length --show 10
	@echo
	@echo "Next: run it again, and nothing is left to compute; or take your own:"
	@echo "  make demo IMAGES=/folder/of/photos MODEL_NAME=facebook/dinov2-base TABLE=/tmp/vectors"
	@echo "  .venv/bin/python jobs/embed_images.py --help"
	@echo "  .venv/bin/python jobs/run_sql.py --function embed_image=ImageViTEmbedding:model_name=$(MODEL_NAME) \\"
	@echo "    --query 'SELECT path, embed_image(content) FROM binaryFile.\`$(IMAGES)\` LIMIT 5'"

train-demo: setup
	@$(BIN)/python -m training

test: java setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

clean:
	rm -rf .venv demo-output

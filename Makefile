# make setup, make demo, make test: from a clone to a table of embeddings, and to the passed tests.

PYTHON ?= python3
IMAGES ?= $(CURDIR)/demo-output/scenes/*.{jpg,png,webp}
CHECKPOINTS := $(CURDIR)/spark_vision/demo/checkpoints
MODEL_NAME ?= $(CHECKPOINTS)/dinov2
CLIP_NAME ?= $(CHECKPOINTS)/clip
CAPTION_NAME ?= $(CHECKPOINTS)/qwen2_5_vl
OUTPUT ?= $(CURDIR)/demo-output

# The environment's own programs, whatever is on the PATH; a JVM starts workers by PYSPARK_PYTHON.
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/installed
JARS := .venv/jars-resolved
export PYSPARK_PYTHON := $(BIN)/python
export PYSPARK_DRIVER_PYTHON := $(BIN)/python

.PHONY: docs matrix notebooks setup demo train-demo test test-all style clean python java
.DEFAULT_GOAL := help
.PHONY: help

help:
	@echo "make demo    embeds images into a Delta table and shows it"
	@echo "             IMAGES=folder, OUTPUT=folder, MODEL_NAME=..., CLIP_NAME=... and CAPTION_NAME=... choose others"
	@echo "make test    checks style, types and behaviour"
	@echo "make test-all  tests also what takes minutes each"
	@echo "make matrix CELL=lowest  runs the tests with other versions: spark-4.0, spark-4.1, lowest, newest"
	@echo "make docs    builds the documentation and the API reference into site/"
	@echo "make notebooks  runs the notebooks again, and stores what they show"
	@echo "make setup   only makes .venv, with Delta's JARs"
	@echo "make train-demo  trains the demonstration's checkpoints again, in half an hour"
	@echo "make clean   removes .venv, .matrix and demo-output"

python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed; say which: make PYTHON=/path/to/python3.11"; exit 1; }

java: python
	@$(PYTHON) -m spark_vision.cli.java

setup: python $(JARS)

$(STAMP): pyproject.toml constraints.txt | python
	@echo "installing into .venv; the first time takes some minutes and 6 GB"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --editable ".[spark,dev]" --constraint constraints.txt
	@touch $(STAMP)

# Sessions start with these JARs; an upgrade of delta-spark brings others.
$(JARS): $(STAMP) | java
	@$(BIN)/python -m spark_vision.spark.delta_jars
	@touch $(JARS)

demo: java setup
	@echo "1 of 3: drawing scenes into demo-output/scenes"
	@$(BIN)/python -m spark_vision.demo demo-output
	@echo "2 of 3: embedding the images by $(notdir $(MODEL_NAME)) into $(OUTPUT)/$(notdir $(MODEL_NAME))"
	@$(BIN)/python jobs/embed_images.py --input "$(IMAGES)" \
		--table "$(OUTPUT)/$(notdir $(MODEL_NAME))" \
		--model-name "$(MODEL_NAME)" --keep length --show 10
	@echo
	@echo "3 of 3: searching by $(notdir $(CLIP_NAME)), captions and answers by $(notdir $(CAPTION_NAME))"
	@$(BIN)/python jobs/show_demo.py --images "$(IMAGES)" \
		--table "$(OUTPUT)/$(notdir $(CLIP_NAME))-$(notdir $(CAPTION_NAME))" \
		--similar "$(OUTPUT)/$(notdir $(MODEL_NAME))" --clip-name "$(CLIP_NAME)" \
		--caption-name "$(CAPTION_NAME)" --page "$(OUTPUT)/demo.html"
	@echo
	@echo "Next: run it again, and nothing is left to compute; or take your own:"
	@echo "  make demo IMAGES=/folder/of/photos MODEL_NAME=facebook/dinov2-base CLIP_NAME=openai/clip-vit-base-patch32"
	@echo "  .venv/bin/python jobs/embed_images.py --help"
	@echo "  .venv/bin/python jobs/run_sql.py --function embed_image=ImageViTEmbedding:model_name=$(MODEL_NAME) \\"
	@echo "    --query 'SELECT path, embed_image(content) FROM binaryFile.\`$(IMAGES)\` LIMIT 5'"
	@echo "Search the pictures on a page in your browser:"
	@echo "  .venv/bin/python jobs/search_page.py --table $(OUTPUT)/$(notdir $(CLIP_NAME))-$(notdir $(CAPTION_NAME)) --column clip --caption-column caption --caption-name $(CAPTION_NAME) --allow-paths $(if $(findstring *,$(IMAGES)),$(patsubst %/,%,$(dir $(IMAGES))),$(IMAGES))"

train-demo: setup
	@$(BIN)/python -m training

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests start many JVMs, which share the classes of this archive.
CLASSES := .venv/share/spark-vision/test-classes.jsa
$(CLASSES): $(JARS)
	@echo "archiving Spark's classes for the tests (only once)"
	@PYTHONPATH=tests/support $(BIN)/python -m shared_classes > $@.log 2>&1 || \
		echo "this JVM cannot archive them, and the tests take longer; log: $@.log"

test: java style $(CLASSES)
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-all: java style $(CLASSES)
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not browser"

matrix: java setup
	@PYTHONPATH=tests/support $(BIN)/python -m version_cells $(CELL) $(PYTEST)

notebooks: java setup
	@PYTHONPATH=tests/support $(BIN)/python -m executed_notebooks

DOCS := .venv/docs-installed
$(DOCS): $(STAMP)
	@$(BIN)/python -m pip install --quiet --editable ".[docs]" --constraint constraints.txt
	@touch $(DOCS)

# The variable silences an announcement of another generator.
docs: python $(DOCS)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built: site/index.html"

clean:
	rm -rf .venv .matrix demo-output site

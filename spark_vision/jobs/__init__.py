"""The jobs, each with its command line: `python -m spark_vision.jobs.embed_images --help`."""

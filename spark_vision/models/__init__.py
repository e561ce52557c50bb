"""Checkpoints, preprocessing and models; uses torch and transformers, never pyspark."""

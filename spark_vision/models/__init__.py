"""Checkpoints, their preprocessing and their models; torch and transformers, never pyspark."""

"""Delta tables of embeddings and captions: incremental writes, streams and vector indexes."""

"""Delta tables of embeddings: made, filled with what they lack, followed by streams and indexes."""

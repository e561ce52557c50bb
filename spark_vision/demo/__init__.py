"""Images and a checkpoint made on the spot, for a first run without a network."""

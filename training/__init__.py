"""Trains the demonstration's checkpoints from nothing, by `python -m training`."""

"""The driver side: user-defined functions, checks before any task, GPU settings."""

"""The driver's side: user-defined functions, checks before any task, sizes of executors."""

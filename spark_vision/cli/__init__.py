"""Shared code of the jobs: arguments, input, progress on a terminal, exit codes."""

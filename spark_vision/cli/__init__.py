"""What the jobs share: arguments, input, progress on a terminal, exit codes."""

"""The commands: arguments in, lines of text out, and nothing else."""

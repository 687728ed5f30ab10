"""Asks and shows: typer, rich and exit codes live here and nowhere else."""

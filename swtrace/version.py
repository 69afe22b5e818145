"""The version, for all that states it: importing this loads nothing else."""

__version__ = "0.1.0"

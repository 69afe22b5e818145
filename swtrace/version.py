"""The version of swtrace. Importing this module loads nothing else."""

__version__ = "0.1.0"

"""Recordings: written, read, damaged, compared."""

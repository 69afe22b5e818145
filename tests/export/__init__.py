"""Exports, read back with the tools that they are made for."""

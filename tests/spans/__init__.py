"""Spans: their contents, their encoding and their delivery to a collector."""

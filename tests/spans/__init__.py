"""Spans: what they say, how they are encoded, how they reach a collector."""

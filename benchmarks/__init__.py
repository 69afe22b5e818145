"""Benchmarks. Each compares alternatives within one run and reports ratios (`make bench`)."""

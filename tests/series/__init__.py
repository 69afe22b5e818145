"""Tests of the series runtime."""

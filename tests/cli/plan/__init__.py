"""Tests of ``swtrace plan``."""

"""Tests of the `swtrace` command, run as users run it."""

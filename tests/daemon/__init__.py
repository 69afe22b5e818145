"""Tests of the daemon, with runs written by real recorders."""

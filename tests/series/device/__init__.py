"""Tests of series whose broadcasts and waits run on a device's streams."""

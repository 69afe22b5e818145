"""Tests of the ledger, and the schedules that they feed it with."""

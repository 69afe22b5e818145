"""The daemon: watches the rings of one host and serves what the ledger states.

One thread owns the watch (:mod:`~swtrace.daemon.observer`): it drains the rings and publishes immutable
snapshots. Everything else only reads them: the Prometheus collector, the live API and the span export.
Nothing here ever makes a rank wait, and nothing here loads torch or vLLM.
"""

"""The daemon: reads the rings of one host and serves the ledger's facts.

One thread (:mod:`~swtrace.daemon.observer`) drains the rings, publishes immutable snapshots and hands finished
steps to the span export. The Prometheus collector and the live API only read snapshots.
Nothing here ever makes a rank wait, and nothing here loads torch or vLLM.
"""

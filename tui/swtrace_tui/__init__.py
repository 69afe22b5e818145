"""The terminal of swtrace: a live view of the ledger's facts, over local rings or daemons.

It computes no facts, never disturbs a rank, and loads neither torch nor vLLM.
"""

"""The terminal of swtrace: a live view of what the ledger states, over local rings or daemons.

It computes no fact of its own, never disturbs a rank, and loads neither torch nor vLLM.
"""

"""``swtrace demo``: a small shared-weight series on this machine, with real ranks.

:mod:`~swtrace.cli.demo.scenarios` defines what to run, :mod:`~swtrace.cli.demo.model` what each rank computes.
:mod:`~swtrace.cli.demo.demo_rank` is one rank, :mod:`~swtrace.cli.demo.launcher` the process that forks the ranks.
:mod:`~swtrace.cli.demo.demo` runs daemon, reader and ranks together; with ``--max-stall`` it runs them again as
:mod:`~swtrace.cli.demo.within_limit` plans.
"""

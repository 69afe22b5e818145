"""``swtrace demo``: the main job in miniature, on this machine, with real ranks and a real series.

:mod:`~swtrace.cli.demo.scenarios` says what is run, :mod:`~swtrace.cli.demo.model` is what each rank
computes, :mod:`~swtrace.cli.demo.demo_rank` one rank, :mod:`~swtrace.cli.demo.launcher` the process that
forks them, :mod:`~swtrace.cli.demo.demo` puts daemon, reader and ranks together.
"""

"""``swtrace doctor``: check this installation and this host, and say how to fix what is wrong.

One module per check. Each returns a tuple of :class:`~swtrace.cli.doctor.diagnosis.Diagnosis` and never
raises for what it checks. :mod:`~swtrace.cli.doctor.doctor` combines them.
"""

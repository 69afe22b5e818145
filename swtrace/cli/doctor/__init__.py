"""``swtrace doctor``: what is right and wrong with this installation and this host, and how to mend it.

One module per thing that is looked at; each returns :class:`~swtrace.cli.doctor.diagnosis.Diagnosis`
tuples and never raises for what it looks at. :mod:`~swtrace.cli.doctor.doctor` puts them together.
"""

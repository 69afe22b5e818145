"""What is wrong, with whom, since when, how sure that is, and what repairing it would save.

A kind of trouble is one :class:`~swtrace.diagnosis.rule.Rule` in :mod:`swtrace.diagnosis.rules`. Verdict, terminal,
report, pytest plugin, metrics, API and ``swtrace diagnose`` all show what these rules find.
"""

from swtrace.diagnosis.case import Case
from swtrace.diagnosis.diagnosis import Diagnosis, Verdict, diagnose, verdict
from swtrace.diagnosis.finding import HIDDEN_BELOW, STALLED_ABOVE, Finding, Level

__all__ = ["HIDDEN_BELOW", "STALLED_ABOVE", "Case", "Diagnosis", "Finding", "Level", "Verdict", "diagnose", "verdict"]

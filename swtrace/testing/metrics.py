"""Facts of a running daemon, read from its ``/metrics``, for tests against a deployment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from operator import methodcaller
from typing import TYPE_CHECKING

from swtrace import http_client
from swtrace.credentials import Credentials
from swtrace.errors import AnswerError, SwtraceError

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

_TIMEOUT_S = 10.0
__tracebackhide__ = methodcaller("errisinstance", SwtraceError)
"""For pytest: the traceback of such an error ends at the line of the test, not here."""


class MetricsError(SwtraceError):
    """A daemon's metrics could not be read, or lack a sample."""


@dataclass(frozen=True, slots=True)
class MetricsFacts:
    """Facts of one scrape. Counters start when the ranks start, or the daemon if it starts later.

    Subtract two scrapes for the time between them.
    """

    samples: tuple[Sample, ...]

    def value(self, name: str, **labels: str | int) -> float | None:
        """Return the sum of all samples with this name and these labels; None if there are none."""
        found = self._values(name, labels)
        return sum(found) if found else None

    def stall_seconds(self, **labels: str | int) -> float:
        """Return the stall of all waits so far (labels: ``series``, ``rank``).

        Raises:
            MetricsError: There is no such series or rank. A sum over nothing would look like 0.
        """
        return self._known("swtrace_wait_stall_seconds_sum", **labels)

    def stall_ratio(self, **labels: str | int) -> float | None:
        """Return stall divided by step time so far; None before the first step."""
        elapsed = self.value("swtrace_step_duration_seconds_sum", **labels)
        return self.stall_seconds(**labels) / elapsed if elapsed else None

    def on_time_rate(self, **labels: str | int) -> float | None:
        """Return the share of waits that were on time so far; None before the first wait."""
        on_time = self.value("swtrace_waits_total", outcome="on_time", **labels) or 0.0
        waits = on_time + (self.value("swtrace_waits_total", outcome="stalled", **labels) or 0.0)
        return on_time / waits if waits else None

    def efficiency(self, **labels: str | int) -> float | None:
        """Return the prefetch efficiency over the last 64 timed steps, of the rank with the lowest."""
        return min(self._values("swtrace_prefetch_efficiency_ratio", labels), default=None)

    def occupancy(self, **labels: str | int) -> dict[str, float]:
        """Return the current number of windows by state, summed over the ranks."""
        states = ("free", "inflight", "ready", "in_use")
        return {state: self._known("swtrace_window_occupancy", state=state, **labels) for state in states}

    def lost(self, **labels: str | int) -> float:
        """Return the number of records lost so far."""
        return self._known("swtrace_ring_lost_records_total", **labels)

    def _values(self, name: str, labels: Mapping[str, str | int]) -> list[float]:
        wanted = {label: str(value) for label, value in labels.items()}
        return [each.value for each in self.samples if each.name == name and wanted.items() <= each.labels.items()]

    def _known(self, name: str, **labels: str | int) -> float:
        value = self.value(name, **labels)
        if value is None:
            found = [each.labels for each in self.samples if each.name == name]
            known = "; ".join(
                f"{label}: {', '.join(sorted({each[label] for each in found if label in each}))}" for label in labels
            )
            asked = ", ".join(f"{label}={wanted!r}" for label, wanted in labels.items())
            raise MetricsError(f"no sample of {name}{f' with {asked}' if asked else ''}; found: {known or 'none'}")
        return value


def read_metrics(url: str) -> MetricsFacts:
    """Scrape a daemon, with the credentials that ``SWTRACE_CA``, ``SWTRACE_USER`` and so on name.

    Args:
        url: The daemon's URL as printed at its start, with or without ``/metrics``.

    Raises:
        MetricsError: The daemon does not answer, or not with metrics.
        SettingsError: The credentials cannot be used, or the URL contains a password.
    """
    from prometheus_client.parser import text_string_to_metric_families

    address = http_client.url(url).removesuffix("/metrics")
    credentials = Credentials.from_environment(os.environ)
    try:
        text = http_client.get(address, "/metrics", timeout_s=_TIMEOUT_S, credentials=credentials)
    except AnswerError as error:
        raise MetricsError(str(error)) from None  # the message has the reason; a test needs no traceback of urllib
    try:
        families = text_string_to_metric_families(text.decode())
        return MetricsFacts(tuple(sample for family in families for sample in family.samples))
    except Exception as error:  # (the parser may raise any error on bad input)
        raise MetricsError(f"{address}/metrics: the answer is not Prometheus metrics: {error!r}") from error

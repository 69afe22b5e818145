"""Efficiency and bandwidth that the ledger reports for simulated channels, compared with the truth.

``python -m benchmarks.channels``. One rank of the group computes 30 % longer than the others. The simulation
(``tests/support/simulated_channels.py``) shares no arithmetic with the ledger, so its figures are the truth. Time is
virtual, so the table does not depend on the machine. ``--json`` prints the figures. A later run with
``--before FILE`` prints them beside its own, to compare two versions of the ledger.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.support.simulated_channels import KINDS, Load, of_group, stated, true_of_group

RANKS = (2, 4, 8, 16)
LOADS = ((1, 800_000), (1, 1_500_000))
"""Prefetch step and nominal ns per delivery, with computes of 1 ms."""

Figures = dict[str, list[float]]


def measure() -> Figures:
    """Return the stated and true efficiency, and the ratio of stated to true bandwidth, by channel, ranks and load."""
    figures = {}
    for prefetch_step, transfer in LOADS:
        for kind in KINDS:
            for ranks in RANKS:
                series, truths = stated(Load(ranks, kind, prefetch_step, transfer=transfer))
                efficiency, bandwidth = of_group([rank.recent for rank in series.ranks])
                true_efficiency, true_bandwidth = true_of_group(truths)
                name = f"{kind} {ranks} {prefetch_step} {transfer}"
                figures[name] = [efficiency, true_efficiency, bandwidth / true_bandwidth]
    return figures


def table(figures: Figures, before: Figures | None) -> Table:
    """Return the figures as a table."""
    made = Table(title="stated and true, one rank 30 % slower, computes of 1 ms")
    columns = ("channel", "ranks", "k", "transfer ms", "true efficiency", "stated", "bandwidth, stated / true")
    for column in columns:
        made.add_column(column, justify="right")
    if before is not None:
        made.add_column("efficiency before", justify="right")
        made.add_column("bandwidth before", justify="right")
    for name, (efficiency, true_efficiency, bandwidth) in figures.items():
        kind, ranks, prefetch_step, transfer = name.split()
        row = [kind, ranks, prefetch_step, f"{int(transfer) / 1e6:g}"]
        row += [f"{true_efficiency:.3f}", f"{efficiency:.3f}", f"{bandwidth:.2f}"]
        if before is not None:
            row += [f"{before[name][0]:.3f}", f"{before[name][2]:.2f}"]
        made.add_row(*row, end_section=int(ranks) == RANKS[-1])
    return made


def main() -> None:
    """Print the table, or the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures for --before")
    parser.add_argument("--before", type=Path, metavar="FILE", help="figures that another version printed")
    arguments = parser.parse_args()
    figures = measure()
    if arguments.json:
        print(json.dumps(figures))
        return
    before = None if arguments.before is None else json.loads(arguments.before.read_text(encoding="utf-8"))
    Console(width=140).print(table(figures, before))


if __name__ == "__main__":
    main()

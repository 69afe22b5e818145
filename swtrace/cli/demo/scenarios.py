"""The demo's dials and the scenarios that set them. The command and every rank import this."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from swtrace.cli.demo.faults import Fault, parse
from swtrace.errors import SettingsError
from swtrace.share import ALL, Share

if TYPE_CHECKING:
    import random

MAX_RANKS = 64
MAX_LAYERS = 4096
MIN_MIB = 0.002
"""About one row of the layer's weight."""
MAX_MIB = 4096
MAX_SEED = (1 << 31) - 1


class Scenario(StrEnum):
    """What the demo shows."""

    HIDDEN = "hidden"
    STALLED = "stalled"
    STRAGGLER = "straggler"
    JITTER = "jitter"


class Transport(StrEnum):
    """How a layer's weight gets to the ranks that do not own it."""

    BROADCAST = "broadcast"
    PULL = "pull"


DESCRIPTIONS: dict[Transport, dict[Scenario, str]] = {
    Transport.BROADCAST: {
        Scenario.HIDDEN: "enough compute per layer to hide every broadcast.",
        Scenario.STALLED: "compute is much shorter than a broadcast, so every layer waits for its weight.",
        Scenario.STRAGGLER: "the last rank computes longer, so the others wait for its late broadcasts.",
        Scenario.JITTER: "compute varies randomly on every rank: stalls everywhere, and no rank to blame.",
    },
    Transport.PULL: {
        Scenario.HIDDEN: "enough compute per layer to hide every copy.",
        Scenario.STALLED: "a copy starts only when its layer needs it, so every layer waits for its weight.",
        Scenario.STRAGGLER: "the last rank computes longer, but the others do not wait for it: they run more steps.",
        Scenario.JITTER: "compute varies randomly on every rank, and no rank waits for another.",
    },
}


class Windows(StrEnum):
    """Window policy."""

    AUTO = "auto"
    ROLLING = "rolling"
    STATIC = "static"


@dataclass(frozen=True, slots=True)
class Dials:
    """All parameters of a demo run, the same on all ranks."""

    ranks: int = 2
    layers: int = 60
    share: str = ALL
    """Which of them are shared, in the form of ``SWTRACE_SHARE``."""
    mib: float = 1.0
    """Size of one layer's weight."""
    compute_ms: float = 1.0
    """Compute per layer: a real matmul, then a sleep that leaves the cores to the transport."""
    prefetch_step: int = 1
    transport: Transport = Transport.BROADCAST
    windows: Windows = Windows.AUTO
    jitter_ms: float = 0.0
    """Mean of the exponentially distributed extra compute of every layer on every rank."""
    faults: tuple[str, ...] = ()
    """What is injected, in the form of ``--fault``."""
    steps: int | None = None
    seconds: float = 8.0
    """How long to run if the number of steps is not given."""
    seed: int = 0

    def check(self) -> None:
        """Refuse layers that cannot be shared, a prefetch step that they leave no room for, and impossible faults.

        Raises:
            SettingsError: there are too few layers, the step is too large, or a fault does not go with the other dials.
        """
        share, stack = Share.parse(self.share), f"--layers {self.layers}"
        if share.beyond(self.layers) or len(self.shared) < 2:  # noqa: PLR2004
            raise SettingsError.of(
                "--share", self.share, f"at least two of the layers 0-{self.layers - 1}, with {stack}"
            )
        if self.prefetch_step > len(self.shared) - 2:
            largest = len(self.shared) - 2
            must_be = f"a whole number from 0 to {largest}" if largest else "0"
            among = stack if len(self.shared) == self.layers else f"{stack} --share {self.share}"
            raise SettingsError.of("--prefetch-step", str(self.prefetch_step), f"{must_be} with {among}")
        for text, fault in zip(self.faults, self.injected, strict=True):
            refused = fault.must_be(self)
            if refused is not None:
                raise SettingsError.of("--fault", text, refused)

    @property
    def shared(self) -> tuple[int, ...]:
        """The layers that are shared; all, if they are only observed."""
        return tuple(range(self.layers)) if self.observes else Share.parse(self.share).layers(0, self.layers)

    @property
    def observes(self) -> bool:
        """Whether nothing is shared."""
        return Share.parse(self.share).observes

    @property
    def broadcasts(self) -> bool:
        """Whether ranks send weights to each other."""
        return self.transport is Transport.BROADCAST and not self.observes

    @property
    def layer_bytes(self) -> int:
        """Size of one layer's weight."""
        return round(self.mib * (1 << 20))

    @property
    def injected(self) -> tuple[Fault, ...]:
        """The faults, each with its ranks."""
        return tuple(parse(text, self.ranks) for text in self.faults)

    def fitting(self) -> Dials:
        """Return these dials with a prefetch step that fits their shared layers."""
        return replace(self, prefetch_step=max(0, min(self.prefetch_step, len(self.shared) - 2)))

    def compute_ns(self, random_source: random.Random) -> int:
        """Return how long a rank computes for its next layer, without a fault."""
        jitter = random_source.expovariate(1 / self.jitter_ms) if self.jitter_ms else 0.0
        return round((self.compute_ms + jitter) * 1e6)

    def to_json(self) -> str:
        """Return the dials as an argument for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Dials:
        """Return the dials from the text of :meth:`to_json`."""
        fields = json.loads(text)
        fields |= {
            "transport": Transport(fields["transport"]),
            "windows": Windows(fields["windows"]),
            "faults": tuple(fields["faults"]),
        }
        return cls(**fields)


def preset(scenario: Scenario, transport: Transport) -> Dials:
    """Return the dials of a scenario."""
    dials = replace(_PRESETS[scenario], transport=transport)
    if scenario is Scenario.STALLED and transport is Transport.PULL:
        # A copy takes about as long as the product with one vector, which reads the same bytes and so always hides one.
        return replace(dials, mib=4.0, prefetch_step=0)
    return dials


_PRESETS: dict[Scenario, Dials] = {
    Scenario.HIDDEN: Dials(compute_ms=3.0, prefetch_step=4),
    Scenario.STALLED: Dials(compute_ms=0.1),
    Scenario.STRAGGLER: Dials(compute_ms=2.0, prefetch_step=2, faults=("straggler:ms=1",)),
    Scenario.JITTER: Dials(compute_ms=1.0, jitter_ms=1.0),
}

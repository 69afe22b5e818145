"""A device that torch cannot order or time is refused; ``tests/gpu`` tests what a GPU does."""

from __future__ import annotations

import pytest
import torch

from swtrace.errors import RegistrationError
from swtrace.series.device.accelerator import TorchDevice


@pytest.mark.parametrize("kind", ["cpu", "xpu"])
def test_a_device_that_is_not_here_is_refused(kind: str) -> None:
    """The error names the device and torch's version."""
    said = rf"device {kind}: torch {torch.__version__.split('+')[0]}\S* has no accelerator of that kind here"
    with pytest.raises(RegistrationError, match=said):
        TorchDevice(torch.device(kind))

"""Stamps where they are unavailable: the error names what they need."""

from __future__ import annotations

import sys

import pytest
import torch

import swtrace.series.device as device_package
from swtrace.errors import SeriesError
from swtrace.series.device.stamps import Stamps, StampsUnavailable


def test_only_cuda_devices_have_stamps() -> None:
    """On another device the error says so, and callers that make series can catch it."""
    with pytest.raises(StampsUnavailable, match=r"device cpu: only CUDA devices have a %globaltimer"):
        Stamps(torch.device("cpu"), 4)
    assert issubclass(StampsUnavailable, SeriesError)


def test_rocm_has_no_such_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCm calls its devices cuda as well; the pretended build is the only thing that is not real here."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(StampsUnavailable, match="only CUDA devices"):
        Stamps(torch.device("cuda"), 4)


def test_without_triton_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without Triton, which cannot be had here, gives an error that says what to install."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "swtrace.series.device.kernels", raising=False)
    monkeypatch.delattr(device_package, "kernels", raising=False)  # as another test left it
    with pytest.raises(StampsUnavailable, match="pip install triton"):
        Stamps(torch.device("cuda"), 4)

"""Digests of layers' bytes, by which ranks that load on their own find out whether they have the same checkpoint.

They protect against mistakes. They prove nothing about who wrote the bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

DIGITS = 16
"""Of a digest, as shown and compared."""


def digest(tensor: Tensor) -> str:
    """Return the digest of a tensor's values, in the order of its elements."""
    return _sha256(tensor).hexdigest()[:DIGITS]


class LoadedBytes:
    """The digest of what a model's loader passed to a layer, whether this rank keeps it or not."""

    def __init__(self) -> None:
        self._parts: set[str] = set()

    def add(self, name: str, loaded: object, *how: object) -> None:
        """Add what was loaded into a parameter, and the further arguments of the load. Only tensors count."""
        import torch

        if isinstance(loaded, torch.Tensor):
            self._parts.add(f"{name} {how} {tuple(loaded.shape)} {loaded.dtype} {_sha256(loaded).hexdigest()}")

    def add_state(self, state: Mapping[str, object], prefix: str, names: Mapping[str, object]) -> None:
        """Add the entries of a state dict, which begin with ``prefix``, for some parameters."""
        for name in names:
            self.add(name, state.get(prefix + name))

    def __str__(self) -> str:
        """Return the digest, which does not depend on the order of the loads; empty if nothing was loaded."""
        if not self._parts:
            return ""
        return hashlib.sha256("\n".join(sorted(self._parts)).encode()).hexdigest()[:DIGITS]


def _sha256(tensor: Tensor) -> hashlib._Hash:
    values = tensor.detach().cpu().contiguous()
    return hashlib.sha256((ctypes.c_ubyte * values.nbytes).from_address(values.data_ptr()) if values.nbytes else b"")

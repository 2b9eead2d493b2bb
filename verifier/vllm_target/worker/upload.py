"""Copies arrays to the device of the logits, without waiting for it.

They are copied from pinned memory if there is any: a copy from other memory waits until the
device has finished all earlier work.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return the array as a tensor on the device."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

"""Counts what waits for a device, on tensors that are on none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class synchronisations(TorchDispatchMode):
    """Counts what would wait for the device, if the tensors were on one."""

    WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique")
    METHODS = ("cpu", "tolist", "item", "__bool__", "__int__", "__float__", "__index__")

    def __enter__(self) -> synchronisations:
        self.count, self._inside = 0, False
        self._patch = pytest.MonkeyPatch()
        for name in self.METHODS:
            self._patch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._patch.undo()

    def _counted(self, method: Any) -> Any:
        def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            self._inside = True
            try:
                return method(tensor, *args, **kwargs)
            finally:
                self._inside = False

        return counting

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        indices = args[1] if str(function).startswith(("aten.index.", "aten.index_put")) else ()
        masked = any(getattr(index, "dtype", None) == torch.bool for index in indices)
        waits = masked or str(function).startswith(self.WAITS)
        self.count += waits and not self._inside
        return function(*args, **(kwargs or {}))

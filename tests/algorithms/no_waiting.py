"""A context in which whatever would wait for a GPU is an error, on the CPU too."""

from typing import Any

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "is_nonzero", "equal.default", "nonzero", "masked_select", "unique", "allclose")


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where a number of a tensor is handed to Python, or decides the shape of another tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(name.startswith(f"aten.{wait}") for wait in WAITS), f"{name} waits for the device"
        if name.startswith(("aten.index.", "aten.index_put")):
            kinds = [index.dtype for index in args[1] if isinstance(index, th.Tensor)]
            assert th.bool not in kinds and th.uint8 not in kinds, f"{name} with a mask waits for the device"
        return func(*args, **(kwargs or {}))

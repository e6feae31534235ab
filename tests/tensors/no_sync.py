"""What makes the host wait for a GPU, found on the CPU."""

from collections.abc import Callable
from typing import Any

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    th.ops.aten._local_scalar_dense.default,
    th.ops.aten.nonzero.default,
    th.ops.aten.masked_select.default,
    th.ops.aten.is_nonzero.default,
    th.ops.aten.equal.default,
}
INDEXING = {
    th.ops.aten.index.Tensor,
    th.ops.aten.index_put.default,
    th.ops.aten.index_put_.default,
    th.ops.aten._unsafe_index.Tensor,
}


class HostSyncError(AssertionError):
    """On a GPU, the host would have waited for the device here."""


class NoSync(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Raise where an operation reads a tensor's numbers on the host: ``.item()``, ``if tensor.any()``, masks as indices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in WAITING:
            raise HostSyncError(f"{func} reads a tensor on the host")
        if func in INDEXING:
            for index in args[1]:
                if index is not None and index.dtype in (th.bool, th.uint8):
                    raise HostSyncError(f"{func} with a mask reads on the host how many rows are meant")
        return func(*args, **(kwargs or {}))

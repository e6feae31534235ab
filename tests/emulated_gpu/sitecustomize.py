"""
A machine that says it has a GPU, for processes with this folder in ``PYTHONPATH``.

Python imports this file when it starts. torch then says that there is a GPU, unless ``CUDA_VISIBLE_DEVICES`` is empty as on a
real machine, and whatever uses it fails. The whole suite can be run so, too::

    PYTHONPATH=tests/emulated_gpu python -m pytest -m "not slow and not gpu"
"""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def is_visible() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0") != ""


def locked() -> None:
    raise AssertionError("the emulated GPU was touched")


class EmulatedGpu(importlib.abc.MetaPathFinder):
    """Changes ``torch.cuda`` once it has been imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch.cuda":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_change(module: Any) -> None:
            execute(module)
            module.is_available, module.device_count = is_visible, lambda: int(is_visible())
            module._lazy_init = locked

        setattr(spec.loader, "exec_module", execute_and_change)  # noqa: B010 (to mypy a method cannot be assigned)
        return spec


sys.meta_path.insert(0, EmulatedGpu())

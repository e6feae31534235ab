"""The modules that a model computes, and whether they are still the same objects; it takes a few microseconds."""

from collections.abc import Iterable
from itertools import chain
from operator import contains
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(
    getattr(torch_module, f"_global{kind}", {})
    for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
)


def is_hooked(module: nn.Module) -> bool:
    """
    Whether a hook is registered on a module.

    :param module: without its children
    :return: True if so
    """
    return any(getattr(module, kind) for kind in HOOKS)


class Structure:
    """
    The children and parameters of some modules, by identity, their classes, the absence of hooks, and the absence of methods
    on the objects.

    :param methods: for each module the names of the methods by which it computes
    """

    def __init__(self, methods: Iterable[tuple[nn.Module, tuple[str, ...]]]) -> None:
        pairs = list(methods)
        modules = [module for module, _ in pairs]
        dictionaries = [getattr(module, kind) for module in modules for kind in ("_modules", "_parameters")]
        self._contents = [dictionary.values() for dictionary in dictionaries if dictionary]
        self._kept = [*chain.from_iterable(self._contents)]  # so that no other object can get the same id
        self._ids = [*map(id, self._kept)]
        self._modules, self._classes = modules, [*map(type, modules)]
        self._hooks = [*GLOBAL_HOOKS, *(getattr(module, kind) for module in modules for kind in HOOKS)]
        named: list[tuple[dict[str, Any], str]] = [(vars(module), name) for module, names in pairs for name in names]
        self._attributes, self._names = [attributes for attributes, _ in named], [name for _, name in named]

    def has_same_contents(self) -> bool:
        """
        Whether children and parameters are the same objects.

        :return: False once a module or a parameter was replaced, added or removed
        """
        return [*map(id, chain.from_iterable(self._contents))] == self._ids

    def is_intact(self) -> bool:
        """
        Whether all modules still are and do what they were and did.

        :return: False also once a hook, a method or another class was set on an object
        """
        return (
            self.has_same_contents()
            and not any(self._hooks)
            and not any(map(contains, self._attributes, self._names))
            and [*map(type, self._modules)] == self._classes
        )

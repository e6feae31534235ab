"""What training changes of a policy besides the parameters and buffers of its ``state_dict``."""

import warnings
from collections.abc import Mapping
from typing import Any, TypedDict

import torch as th
from torch import nn

_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = sorted(name for name in _OF_MODULES if name.endswith("_hooks"))


class PolicyChanges(TypedDict):
    """
    What has changed of a policy.

    :param requires_grad: of the parameters that were frozen or thawed, by name
    :param buffers: those that a ``state_dict`` leaves out, by name
    """

    requires_grad: dict[str, bool]
    buffers: dict[str, th.Tensor]


def views(policy: nn.Module) -> dict[str, object]:
    """
    The attributes of a policy and of its modules as plain objects, which are no modules.

    :param policy: the policy
    :return: an object with the attributes of each module, by the module's name
    """
    return {_full(name): _view(module) for name, module in policy.named_modules()}


def left_out(policy: nn.Module) -> set[tuple[str, str]]:
    """
    Attributes in :func:`views` that are kept in other ways, or are made anew in every step.

    :param policy: the policy
    :return: names of modules and attributes
    """
    found = {(_full(name), key) for name, _ in policy.named_modules() for key in _OF_MODULES}
    return found | {("policy", "optimizer"), ("policy", "action_dist")}


def named_parts(policy: nn.Module) -> dict[str, object]:
    """
    The objects of a policy to which others may refer.

    :param policy: the policy
    :return: modules, parameters and buffers by name
    """
    found: dict[str, object] = {_full(name): module for name, module in policy.named_modules()}
    tensors = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    return {**found, **{f"tensor {_full(name)}": tensor for name, tensor in tensors.items()}}


def _full(name: str) -> str:
    return f"policy.{name}" if name else "policy"


def _view(module: nn.Module) -> object:
    """An object of the same attributes, in a class of the same name."""
    view: Any = type(type(module).__name__, (), {})()
    view.__dict__ = vars(module)
    return view


def _hooks(module: nn.Module) -> list[object]:
    return [hook for kind in _HOOKS for hook in getattr(module, kind).values()]


def _others(policy: nn.Module) -> dict[str, th.Tensor]:
    """Buffers that are not in the ``state_dict``."""
    names: set[str] = set(policy.state_dict())
    return {name: buffer for name, buffer in policy.named_buffers() if name not in names}


class PolicyRecord:
    """
    A policy as it was when training started.

    :param policy: the policy
    """

    def __init__(self, policy: nn.Module) -> None:
        self.requires_grad = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
        self.modules = {_full(name): module for name, module in policy.named_modules()}
        self.hooks = {name: _hooks(module) for name, module in self.modules.items()}
        self.told: set[str] = set()

    def changes(self, policy: nn.Module) -> PolicyChanges:
        """
        What has changed since, with a warning that names what cannot be kept.

        :param policy: the policy of the model
        :return: for :meth:`restore`
        """
        self._tell_of_lost(policy)
        now = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
        return {
            "requires_grad": {name: flag for name, flag in now.items() if self.requires_grad.get(name) != flag},
            "buffers": {name: buffer.detach().cpu().clone() for name, buffer in _others(policy).items()},
        }

    def _tell_of_lost(self, policy: nn.Module) -> None:
        """Warn once of each module that was replaced, and of each whose hooks have changed."""
        now = {_full(name): module for name, module in policy.named_modules()}
        names = [*self.modules, *(name for name in now if name not in self.modules)]
        replaced = [name for name in names if now.get(name) is not self.modules.get(name)]
        hooked = [name for name in now if name not in replaced and _hooks(now[name]) != self.hooks[name]]
        for what, found in (("modules that were replaced", replaced), ("hooks that have changed at", hooked)):
            new = [name for name in found if name not in self.told]
            self.told.update(new)
            if new:
                warnings.warn(
                    f"{what}: {', '.join(new)}. They cannot be kept in a checkpoint: a resumed run starts with what the "
                    "script gives it"
                )

    @staticmethod
    def restore(policy: nn.Module, changes: PolicyChanges) -> None:
        """
        Restore what had changed. What the script no longer has is left out.

        :param policy: the policy of the model
        :param changes: of :meth:`changes`
        """
        parameters: Mapping[str, nn.Parameter] = dict(policy.named_parameters())
        for name, flag in changes["requires_grad"].items():
            if name in parameters:
                parameters[name].requires_grad_(flag)
        buffers = _others(policy)
        with th.no_grad():
            for name, value in changes["buffers"].items():
                if name in buffers and buffers[name].shape == value.shape:
                    buffers[name].copy_(value)

"""
What torch and SB3 compute, method by method, to detect a replaced one.

A user may replace a method on an object (``module.forward = mine``) or on a class (``nn.Linear.forward = mine``), and a
function in a module of SB3 (``policies.preprocess_obs = mine``). A model that computes the same by formulas of its own would
not notice. So it checks first, and leaves what was replaced to torch.
"""

import sys
from inspect import getattr_static
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch as th
from stable_baselines3.common import distributions, policies, preprocessing
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from torch import nn

POLICY_METHODS = (
    "forward",
    "evaluate_actions",
    "get_distribution",
    "predict_values",
    "extract_features",
    "_get_action_dist_from_latent",
)
"""The methods by which SB3's policies compute what an engine computes."""

FAMILY = ("proba_distribution", "log_prob", "entropy", "sample", "get_actions")
"""The methods by which SB3's policies use their action distribution."""
_TORCH_FAMILY = ("log_prob", "entropy", "sample")
_ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Identity, nn.LeakyReLU, nn.ELU, nn.Softplus)
CALLS = ("__call__", "_call_impl")
"""The methods by which torch calls ``forward`` of a module."""
_METHODS: dict[type, tuple[str, ...]] = {
    ActorCriticPolicy: POLICY_METHODS,
    BaseModel: ("extract_features", "obs_to_tensor"),
    BasePolicy: ("unscale_action",),
    MlpExtractor: ("forward", "forward_actor", "forward_critic"),
    **dict.fromkeys((FlattenExtractor, NatureCNN, CombinedExtractor), ("forward",)),
    nn.Conv2d: ("forward", "_conv_forward"),
    nn.Module: CALLS,
    **dict.fromkeys((nn.Linear, nn.Sequential, nn.Flatten, *_ACTIVATIONS), ("forward",)),
    distributions.DiagGaussianDistribution: FAMILY,
    distributions.CategoricalDistribution: FAMILY,
    distributions.MultiCategoricalDistribution: FAMILY,
    distributions.BernoulliDistribution: FAMILY,
    th.distributions.Normal: (*_TORCH_FAMILY, "rsample"),
    th.distributions.Categorical: _TORCH_FAMILY,
    th.distributions.Bernoulli: _TORCH_FAMILY,
    nn.LSTM: ("forward",),
    nn.GRU: ("forward",),
    th.optim.Optimizer: ("zero_grad",),
}
_FUNCTIONS: dict[ModuleType, tuple[str, ...]] = {
    policies: ("preprocess_obs",),
    preprocessing: ("preprocess_obs", "is_image_space", "is_image_space_channels_first"),
    distributions: ("sum_independent_dims", "Normal", "Categorical", "Bernoulli"),
}
"""Functions and classes that SB3's methods look up in a module, by the module in which they do."""
_MASKED_FAMILY = (*FAMILY, "apply_masking")
_OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {
    "sb3_contrib.common.maskable.policies": {"MaskableActorCriticPolicy": POLICY_METHODS},
    "sb3_contrib.common.maskable.distributions": {
        "MaskableCategoricalDistribution": _MASKED_FAMILY,
        "MaskableMultiCategoricalDistribution": _MASKED_FAMILY,
        "MaskableBernoulliDistribution": _MASKED_FAMILY,
        "MaskableCategorical": ("apply_masking", "entropy", *_TORCH_FAMILY),
    },
    "sb3_contrib.common.recurrent.policies": {"RecurrentActorCriticPolicy": (*POLICY_METHODS, "_process_sequence")},
    "sb3_policyopt.policies": {
        "RecurrentPolicy": (*POLICY_METHODS, "_process_sequence"),
        "MaskableRecurrentPolicy": (*POLICY_METHODS, "_process_sequence", "_latents", "_masked"),
        "GRU": ("forward",),
    },
}
"""By module and class, the methods of what is known once its module is imported."""
_OPTIONAL_FUNCTIONS = {"sb3_contrib.common.maskable.distributions": ("MaskableCategorical",)}
Owner: TypeAlias = type | ModuleType


def _original(owner: type, name: str) -> Any:
    """
    The method as its library defines it.

    :param owner: a class of torch or SB3
    :param name: of the method
    :return: the method; None if it had been replaced before
    """
    method = getattr_static(owner, name)
    function = method.__func__ if isinstance(method, staticmethod) else method
    definer = next(base for base in owner.__mro__ if name in vars(base))
    folder = Path(sys.modules[definer.__module__.partition(".")[0]].__file__ or "").parent
    while function is not None:  # torch wraps some of its methods once more
        code = getattr(function, "__code__", None)
        if code is None or not Path(code.co_filename).is_relative_to(folder):
            return None
        function = getattr(function, "__wrapped__", None)
    return method


def _original_function(module: ModuleType, name: str) -> Any:
    """
    The function or class that a module's code finds under a name.

    :param module: of SB3 or sb3-contrib
    :param name: of the function
    :return: the function; None if it had been replaced before by one of neither library, nor of torch
    """
    found = getattr(module, name)
    library = getattr(found, "__module__", "").partition(".")[0]
    return found if library in ("torch", module.__name__.partition(".")[0]) else None


_ORIGINALS: dict[tuple[Owner, str], Any] = {
    **{(owner, name): _original(owner, name) for owner, names in _METHODS.items() for name in names},
    **{(module, name): _original_function(module, name) for module, names in _FUNCTIONS.items() for name in names},
}


def _originals() -> dict[tuple[Owner, str], Any]:
    """
    All methods and functions that are known, those of optional modules from when they were first seen.

    :return: by class or module, and name; None for one that had been replaced before
    """
    for module in [module for module in list(_OPTIONAL) if module in sys.modules]:
        place, kinds = sys.modules[module], _OPTIONAL.get(module, {})
        if not all(hasattr(place, kind) for kind in kinds):
            continue  # another thread is importing it
        found: dict[tuple[Owner, str], Any] = {}
        for kind, names in kinds.items():
            owner: type = getattr(place, kind)
            found.update({(owner, name): _original(owner, name) for name in names})
        for name in _OPTIONAL_FUNCTIONS.get(module, ()):
            found[place, name] = _original_function(place, name)
        for key, original in found.items():  # another thread may do the same: the first one's stay
            _ORIGINALS.setdefault(key, original)
        _OPTIONAL.pop(module, None)  # only now, so that no thread misses them
    return _ORIGINALS


def has_original_step(optimizer: th.optim.Optimizer) -> bool:
    """
    Whether an optimizer steps as its class does in torch. Torch wraps ``step`` of a class when it makes its first object, so
    that this one is looked up then, and not when this module is imported.

    :param optimizer: of one of torch's classes
    :return: False if ``step`` or ``zero_grad`` was replaced on the object or on its class
    """
    kind = type(optimizer)
    if (kind, "step") not in _ORIGINALS:
        _ORIGINALS[kind, "step"] = _original(kind, "step")
    return is_original(optimizer, kind, "step") and is_original(optimizer, th.optim.Optimizer, "zero_grad")


def is_original(thing: object, owner: type, *names: str) -> bool:
    """
    Whether an object's methods are those of a class of torch or SB3.

    :param thing: the object, of the class or of one that inherits from it
    :param owner: the class, one of those listed in this module
    :param names: of the methods
    :return: False if one was replaced on the object, in its class or in the library's class
    """
    originals = _originals()
    return all(
        name not in vars(thing) and getattr_static(type(thing), name, None) is originals[owner, name] is not None
        for name in names
    )


def is_called_as_usual(module: nn.Module) -> bool:
    """
    Whether calling a module is torch's way to its ``forward``.

    :param module: any
    :return: False if it, its class or torch has another ``__call__``
    """
    return is_original(module, nn.Module, *CALLS)


def replaced_methods() -> list[str]:
    """
    The methods of torch's and SB3's own classes, and the functions of SB3's modules, that were replaced.

    :return: their names, ``class.method`` or ``module.function``
    """
    return [
        f"{owner.__name__}.{name}"
        for (owner, name), original in list(_originals().items())
        if original is None or vars(owner).get(name, original) is not original
    ]

"""
Publish agents to the Hugging Face Hub, and load agents without running code from them (needs the ``hub`` extra)::

    from sb3_policyopt.hub import load_from_hub, push_to_hub

    push_to_hub(model, "me/ppo-CartPole-v1")
    model, vec_normalize = load_from_hub("me/ppo-CartPole-v1")

``package_to_hub``, and ``load_from_hub`` with ``filename=``, are called as in the package huggingface_sb3.
"""

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from sb3_policyopt.hub.course import package_to_hub
    from sb3_policyopt.hub.errors import HubError
    from sb3_policyopt.hub.load import load_from_hub
    from sb3_policyopt.hub.push import push_to_hub

__all__ = ["HubError", "load_from_hub", "package_to_hub", "push_to_hub"]

_MODULES = {"HubError": "errors", "load_from_hub": "load", "package_to_hub": "course", "push_to_hub": "push"}


def __getattr__(name: str) -> object:
    """Import huggingface_hub, and torch, when they are needed: the command line answers --help without."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return cast(object, getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"huggingface_hub", "yaml", "imageio_ffmpeg"}:
            raise
        message = f'sb3_policyopt.hub needs {error.name}: pip install "sb3-policyopt[hub]"'
        raise ModuleNotFoundError(message, name=error.name) from error

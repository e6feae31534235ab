"""The attributes of an object that training changes; those that do not change are configuration, which the script makes."""

import io
import pickle
import warnings
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn


class _Pickler(pickle.Pickler):
    """Raises an error for models, environments, callbacks and loggers, whose state is kept in other ways."""

    def persistent_id(self, obj: object) -> None:
        """
        Called for every object that is about to be pickled.

        :param obj: the object
        :raises pickle.PicklingError: if a copy of it would replace the original
        """
        if isinstance(obj, (BaseAlgorithm, BaseCallback, Logger, VecEnv, nn.Module, th.optim.Optimizer)):
            raise pickle.PicklingError(f"{type(obj).__name__} is not copied")


class _StateDict(dict[str, Any]):
    """The ``state_dict`` of a network or an optimizer that an object has: restored in place, where others refer to it."""


def _pickled(value: object) -> bytes | None:
    """
    A value as bytes.

    :param value: anything
    :return: None if it cannot be pickled; of a network or an optimizer its ``state_dict``
    """
    if isinstance(value, (nn.Module, th.optim.Optimizer)):
        value = _StateDict(_on_cpu(value.state_dict()))
    file = io.BytesIO()
    try:
        _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception:  # a class may raise anything
        return None
    return file.getvalue()


def _on_cpu(value: Any) -> Any:
    """A ``state_dict`` whose tensors can be read where there is no GPU; it is loaded to the device of the parameters."""
    if isinstance(value, th.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


class ChangingAttributes:
    """
    The attributes of some objects that differ from what they were when this was made.

    Networks and optimizers are kept by their ``state_dict``. References to models, environments, callbacks and loggers are
    ignored, whose state is kept in other ways. Other attributes that cannot be pickled are ignored, too; of those that gather
    data (a dictionary, a list, ...) and have changed a warning tells.

    :param objects: by a name that is the same in every run of the script
    :param exclude: attributes to ignore
    """

    def __init__(self, objects: Mapping[str, object], exclude: Collection[str] = ()) -> None:
        self.objects = dict(objects)
        self.exclude = frozenset(exclude)
        self.told: set[str] = set()
        self.before = {name: self._attributes(thing) for name, thing in self.objects.items()}
        self.contents_before = {name: self._contents_of_lost(name) for name in self.objects}

    def _attributes(self, thing: object) -> dict[str, bytes]:
        pickles = {name: _pickled(value) for name, value in vars(thing).items() if name not in self.exclude}
        return {name: content for name, content in pickles.items() if content is not None}

    def state(self) -> dict[str, dict[str, bytes]]:
        """
        What has changed.

        :return: pickled values by object and attribute
        """
        changes = {}
        for name, thing in self.objects.items():
            before = self.before[name]
            now = self._attributes(thing)
            self._tell_of_lost(name)
            changes[name] = {key: content for key, content in now.items() if before.get(key) != content}
        return changes

    def _contents_of_lost(self, name: str) -> dict[str, object]:
        """Of the containers of an object that cannot be pickled, what they hold, as far as it can be compared."""
        found: dict[str, object] = {}
        for key, value in vars(self.objects[name]).items():
            if key in self.exclude or not isinstance(value, (dict, list, set, deque)) or _pickled(value) is not None:
                continue
            items = [*value.items()] if isinstance(value, dict) else [*value]
            found[key] = _pickled(items) or len(items)
        return found

    def _tell_of_lost(self, name: str) -> None:
        """Warn once of each container that has changed and cannot be kept."""
        for key, content in self._contents_of_lost(name).items():
            full = f"{type(self.objects[name]).__name__}.{key}"
            if full in self.told or content == self.contents_before[name].get(key, content):
                continue
            self.told.add(full)
            warnings.warn(
                f"{full} cannot be kept in a checkpoint, as it cannot be pickled (does it hold a lambda or an open file?): a "
                "resumed run starts with what the script gives it"
            )

    def restore(self, state: Mapping[str, Mapping[str, bytes]]) -> None:
        """
        Restore the attributes that had changed.

        :param state: of objects by the same names; other objects are not changed
        """
        for name, changes in state.items():
            if name not in self.objects:
                continue
            attributes = vars(self.objects[name])
            for key, content in changes.items():
                value = pickle.loads(content)
                if not isinstance(value, _StateDict):
                    attributes[key] = value
                elif key in attributes:
                    attributes[key].load_state_dict(dict(value))
                else:
                    warnings.warn(
                        f"{type(self.objects[name]).__name__}.{key} starts afresh: it was made during the training, "
                        "and is not there yet to be continued"
                    )

"""The attributes of an object that training changes; those that do not change are configuration, which the script makes."""

import io
import pickle
from collections.abc import Collection, Mapping

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
        if isinstance(obj, (BaseAlgorithm, BaseCallback, Logger, VecEnv, nn.Module)):
            raise pickle.PicklingError(f"{type(obj).__name__} is not copied")


def _pickled(value: object) -> bytes | None:
    """
    A value as bytes.

    :param value: anything
    :return: None if it cannot be pickled
    """
    file = io.BytesIO()
    try:
        _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception:  # a class may raise anything
        return None
    return file.getvalue()


class ChangingAttributes:
    """
    The attributes of some objects that differ from what they were when this was made.

    Attributes that cannot be pickled, and references to models, environments, callbacks and loggers, are ignored.

    :param objects: by a name that is the same in every run of the script
    :param exclude: attributes to ignore
    """

    def __init__(self, objects: Mapping[str, object], exclude: Collection[str] = ()) -> None:
        self.objects = dict(objects)
        self.exclude = frozenset(exclude)
        self.before = {name: self._attributes(thing) for name, thing in self.objects.items()}

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
            changes[name] = {key: content for key, content in now.items() if before.get(key) != content}
        return changes

    def restore(self, state: Mapping[str, Mapping[str, bytes]]) -> None:
        """
        Restore the attributes that had changed.

        :param state: of objects by the same names; other objects are not changed
        """
        for name, changes in state.items():
            if name in self.objects:
                vars(self.objects[name]).update({key: pickle.loads(content) for key, content in changes.items()})

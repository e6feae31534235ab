"""Agents with masks in rl-zoo3's ``enjoy`` and ``record_video``, which pass ``predict`` what memory needs, but no masks."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import rl_zoo3
import rl_zoo3.utils
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt import registry
from sb3_policyopt.evaluation import MaskingVecEnv, WithMasks, uses_masks
from sb3_policyopt.process import replaced


class _Loader:
    """
    Stands for an algorithm's class in a script that only loads an agent.

    :param algorithm_class: the class
    :param environments: those that the script has made so far, which grow
    """

    def __init__(self, algorithm_class: type[BaseAlgorithm], environments: list[MaskingVecEnv]) -> None:
        self.algorithm_class, self.environments = algorithm_class, environments

    def load(self, *arguments: Any, **named: Any) -> Any:
        """
        Load an agent.

        :param arguments: of the class's ``load``
        :param named: the same
        :return: the agent; one with masks asks the script's environments for them
        """
        model = self.algorithm_class.load(*arguments, **named)
        return WithMasks(model, self.environments[-1].action_masks) if uses_masks(model) else model


@contextmanager
def acting_with_masks(script: str) -> Iterator[None]:
    """
    Within this context, agents that a command of rl-zoo3 loads act with the masks of the environments that it makes.

    :param script: module of the command
    """
    importlib.import_module(script)  # which does not run it; within the context it would keep the function that is replaced
    environments: list[MaskingVecEnv] = []
    create = rl_zoo3.utils.create_test_env

    def create_test_env(*arguments: Any, **named: Any) -> VecEnv:
        environments.append(MaskingVecEnv(create(*arguments, **named)))
        return environments[-1]

    before = dict(rl_zoo3.ALGOS)
    with ExitStack() as context:
        for module in list(sys.modules.values()):  # rl_zoo3, rl_zoo3.utils and rl_zoo3.enjoy have their own references
            if getattr(module, "__dict__", {}).get("create_test_env") is create:
                context.enter_context(replaced(module, "create_test_env", create_test_env))
        rl_zoo3.ALGOS.update({name: _Loader(rl_zoo3.ALGOS[name], environments) for name in registry.ALGORITHMS})
        try:
            yield
        finally:
            rl_zoo3.ALGOS.update(before)

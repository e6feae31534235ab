"""Register the algorithms of this package with rl-zoo3."""

import sys

import rl_zoo3
from rl_zoo3 import hyperparams_opt

from sb3_policyopt import registry
from sb3_policyopt.envs import maskable
from sb3_policyopt.zoo import experiment, shims
from sb3_policyopt.zoo.experiment import Experiment


def register() -> None:
    """
    Register every algorithm of :mod:`sb3_policyopt.registry` with rl-zoo3, and apply the corrections of :mod:`.shims`.

    The environments of :mod:`sb3_policyopt.envs.maskable` get their ids, too.

    rl-zoo3 shares one dictionary between its modules, so the change reaches a command that has been imported before. A
    second call registers what has been added to the registry since.
    """
    for name, algorithm in registry.ALGORITHMS.items():
        rl_zoo3.ALGOS[name] = algorithm.load_class()
        hyperparams_opt.HYPERPARAMS_SAMPLER[name] = registry.resolve(algorithm.sampler)
        hyperparams_opt.HYPERPARAMS_CONVERTER[name] = registry.resolve(algorithm.converter)
    maskable.register()
    shims.apply()
    for module in list(sys.modules.values()):  # rl_zoo3.train, which may be running as __main__, has its own reference
        if getattr(module, "__dict__", {}).get("ExperimentManager") is Experiment.__base__ and module is not experiment:
            module.__dict__["ExperimentManager"] = Experiment

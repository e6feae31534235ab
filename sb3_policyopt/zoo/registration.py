"""Put PPO and TRPO where rl-zoo3 looks for algorithms."""

import sys

import rl_zoo3
from rl_zoo3 import hyperparams_opt

from sb3_policyopt.ppo import PPO
from sb3_policyopt.trpo import TRPO
from sb3_policyopt.zoo import experiment, shims
from sb3_policyopt.zoo.experiment import Experiment
from sb3_policyopt.zoo.sampling import sample_trpo_params


def register() -> None:
    """
    Register PPO and TRPO under rl-zoo3's keys ``ppo`` and ``trpo``, and mend what is broken in it for everybody.

    The keys are the class names in lower case, because that is how the zoo finds the algorithm of a published agent.
    rl-zoo3 shares one dictionary between its modules, so a command that has already been imported sees the change.
    """
    rl_zoo3.ALGOS.update(ppo=PPO, trpo=TRPO)
    hyperparams_opt.HYPERPARAMS_SAMPLER["trpo"] = sample_trpo_params  # PPO's own ranges hold as they are
    shims.apply()
    for module in list(sys.modules.values()):  # rl_zoo3.train, which may be running as __main__, has a reference of its own
        if getattr(module, "__dict__", {}).get("ExperimentManager") is Experiment.__base__ and module is not experiment:
            module.__dict__["ExperimentManager"] = Experiment

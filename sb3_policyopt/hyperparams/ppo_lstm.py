"""RecurrentPPO's hyperparameters as a Python module: ``-conf sb3_policyopt.hyperparams.ppo_lstm``."""

from sb3_policyopt.hyperparams import module_attributes

__getattr__ = module_attributes("ppo_lstm")

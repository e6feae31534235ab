"""RecurrentTRPO's hyperparameters as a Python module: ``-conf sb3_policyopt.hyperparams.trpo_lstm``."""

from sb3_policyopt.hyperparams import module_attributes

__getattr__ = module_attributes("trpo_lstm")

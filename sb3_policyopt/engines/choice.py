"""Which engine serves a policy."""


from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.engines.autograd import AutogradEngine, Objectives
from sb3_policyopt.engines.engine import Engine


def choose_engine(policy: ActorCriticPolicy, objectives: Objectives, wanted: str, micro_batch_size: int | None) -> Engine:
    """
    The fastest engine that computes exactly what the policy and the algorithm's hooks say.

    :param policy: any SB3 actor-critic policy
    :param objectives: the algorithm, whose hooks define what is optimised
    :param wanted: "auto", "autograd" or "closed_form"
    :param micro_batch_size: most samples that go through the networks at once, None for no bound
    :return: the engine, bound to the policy's parameters
    :raises ValueError: if ``wanted`` is "closed_form" and the policy is none it can do
    """
    return AutogradEngine(policy, objectives, micro_batch_size)

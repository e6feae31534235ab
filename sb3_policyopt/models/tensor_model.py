"""Models that compute with torch on the device where the policy is, for observations of either library."""

from abc import abstractmethod

import torch as th
from stable_baselines3.common.utils import obs_as_tensor

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.models.model import Decision, Model, TensorDecision
from sb3_policyopt.rollout.batch import Observations
from sb3_policyopt.rollout.context import NO_CONTEXT, Context
from sb3_policyopt.rollout.transfer import to_host


class TensorModel(Model[th.Tensor]):
    """A model whose rollouts and updates are torch's."""

    @abstractmethod
    def decide(self, observations: Observations[th.Tensor], context: Context = NO_CONTEXT) -> TensorDecision:
        """
        Sample actions for one step of all environments, without waiting for the device.

        :param observations: on the policy's device, first axis n_envs
        :param context: masks and states, for a policy that takes them
        :return: actions, values, log-probabilities, and the states after the step
        """

    @abstractmethod
    def values_of(self, observations: Observations[th.Tensor], context: Context = NO_CONTEXT) -> th.Tensor:
        """
        V(s), without waiting for the device.

        :param observations: on the policy's device, first axis n
        :param context: states, for a policy that takes them
        :return: float32, shape (n,)
        """

    def act(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> Decision:
        """As :meth:`decide`, for arrays: one transfer to the device and one back."""
        step = self.decide(obs_as_tensor(observations, self.policy.device), context)
        actions, values, log_prob = to_host(step.actions, step.values, step.log_prob)
        return Decision(actions, values, log_prob, step.memory)

    def values(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> NumpyArray:
        """As :meth:`values_of`, for arrays."""
        return to_host(self.values_of(obs_as_tensor(observations, self.policy.device), context))[0]

"""The networks in a rollout: a row for each environment, step after step."""

import torch as th

from sb3_policyopt.distributions.masking import penalties
from sb3_policyopt.global_state import arithmetic_of_steps, torch_threads
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.models.model import Decision
from sb3_policyopt.models.networks.actor_critic import ActorCriticNetworks
from sb3_policyopt.models.networks.few_rows import WORTH_JOINING, JoinedNetworks
from sb3_policyopt.models.networks.layers import Layer
from sb3_policyopt.models.networks.library import LibraryRule

PASSES = 3
"""Forward passes that take as long as one forward and backward."""


class Acting:
    """
    Samples actions and computes values.

    :param networks: actor and critic
    :param action_shape: of an action of one environment
    :param tensors: the same in torch, for many environments
    :param rule: the rule that chooses
    """

    def __init__(
        self,
        networks: ActorCriticNetworks[NumpyArray],
        action_shape: tuple[int, ...],
        tensors: ActorCriticNetworks[th.Tensor],
        rule: LibraryRule,
    ) -> None:
        self.networks = networks
        self.tensors, self.rule = tensors, rule
        self.in_torch = False
        self.arithmetic = arithmetic_of_steps()
        self.action_shape = action_shape
        self.sampler = networks.family.sampler(0, 0)
        self.joined = None
        if len(networks.actor_layers) == len(networks.critic_layers):
            actor, critic = (
                [*(Layer(layer.weight[0], layer.bias[0, 0]) for layer in layers), head]
                for layers, head in (
                    (networks.actor_layers, networks.actor_head),
                    (networks.critic_layers, networks.critic_head),
                )
            )
            # The networks' own stretch of θ, without the layers of an extractor that both share.
            stretch = networks.theta[networks.starts[0] : networks.critic.end]
            self.joined = JoinedNetworks(stretch, actor, critic, networks.activation)

    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """
        Draw the noise of all steps at once, from torch's global generator.

        :param n_steps: number of steps to come
        :param n_envs: number of environments
        """
        self.rule.look()
        self.arithmetic = arithmetic_of_steps()
        self.in_torch = self.rule.library(n_envs // PASSES) == "torch"
        self.sampler = self.networks.family.sampler(n_steps, n_envs)

    def act(self, features: NumpyArray, action_masks: NumpyArray | None = None) -> Decision:
        """
        One forward pass of both networks, and the next piece of noise.

        :param features: a row for each environment
        :param action_masks: which actions are allowed, bool, shape (n_envs, n); None for all
        :return: actions, values and log-probabilities
        """
        if self.sampler.is_used_up:
            self.start_rollout(1, features.shape[1])
        with self.arithmetic():
            parameters, values = self._outputs(features)
            if action_masks is not None:  # M1
                parameters = (parameters[0] + penalties(action_masks), *parameters[1:])
            actions, log_prob = self.sampler.draw(parameters)
        return Decision(actions.reshape(-1, *self.action_shape), values, log_prob)

    def values(self, features: NumpyArray) -> NumpyArray:
        """
        One forward pass of the critic.

        :param features: its own, shape (1, n, n_features)
        :return: V, shape (n,)
        """
        with self.arithmetic(), self.networks.threads(features.shape[1]):
            return self.networks.critic_forward(features, with_slopes=False).outputs.values

    def _outputs(self, features: NumpyArray) -> tuple[tuple[NumpyArray, ...], NumpyArray]:
        """
        Forward pass of both networks.

        :param features: a row for each environment
        :return: the distributions' parameters, and V of shape (n_envs,)
        """
        shared, n_envs = len(features) == 1, features.shape[1]
        if self.joined is not None and shared and n_envs * self.joined.size <= WORTH_JOINING:
            output, values = self.joined.outputs(features[0])
            return (output, *self.networks.free), values
        if self.in_torch:
            own = features if features.flags.writeable else features.copy()
            with torch_threads(self.rule.threads):
                tensors = self.tensors.forward(th.from_numpy(own), with_slopes=False).outputs
            return tuple([parameter.numpy() for parameter in tensors.parameters]), tensors.values.numpy()
        with self.networks.threads(n_envs):
            outputs = self.networks.forward(features, with_slopes=False).outputs
        return outputs.parameters, outputs.values

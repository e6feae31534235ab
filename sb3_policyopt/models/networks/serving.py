"""Whether the networks in closed form still compute what a policy's modules compute."""

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_policyopt.identity.originals import FAMILY, POLICY_METHODS
from sb3_policyopt.identity.structure import Structure
from sb3_policyopt.models.networks.sb3_layout import memory_modules, read_off
from sb3_policyopt.optimisation.flat_parameters import FlatParameters


class NetworksWatch:
    """
    What was read off a policy, to compare with.

    :param policy: whose networks are computed
    :param flat: its parameters
    :param extractors: features extractors that are computed without torch
    """

    def __init__(self, policy: ActorCriticPolicy, flat: FlatParameters, *extractors: nn.Module) -> None:
        self.policy = policy
        self.flat = flat
        mlp = policy.mlp_extractor
        chains = [module for part in (mlp.policy_net, mlp.value_net) for module in part.modules()]
        memory = [module for part in memory_modules(policy) for module in part]
        plain = [*chains, *memory, policy.action_net, policy.value_net]
        # Python looks for __call__ in the class, which the structure keeps, and torch for _call_impl on the object first.
        self.structure = Structure(
            [
                (policy, ("_call_impl", *POLICY_METHODS, "_process_sequence")),
                (mlp, ("_call_impl", "forward", "forward_actor", "forward_critic")),
                *((module, ("_call_impl", "forward")) for module in plain),
                *((module, ("_call_impl", "forward", "_conv_forward")) for part in extractors for module in part.modules()),
            ]
        )
        self._objects, self._names = zip(*read_off(policy), strict=True)
        self._distribution = vars(policy.action_dist)  # of the object that read_off compares
        self.constants = self._constants()

    def fits(self) -> bool:
        """
        Whether modules and parameters are the same objects, without hooks or methods of their own, and the activations'
        constants, the spaces and the distribution are the same.

        :return: False if they are not
        """
        return self.flat.pull() and self.structure.is_intact() and self._constants() == self.constants

    def _constants(self) -> list[object]:
        return [*map(getattr, self._objects, self._names), *map(self._distribution.__contains__, FAMILY)]

    def serves(self) -> bool:
        """
        Whether the networks compute what the policy's do.

        :return: False once modules or parameters, the activations' constants, the spaces or the distribution are others
        """
        return self.fits() and self.flat.is_of_same_kind()

    def check_after_foreign_step(self) -> None:
        """
        Follow what an optimizer of the user's did to the parameters.

        :raises ValueError: if it replaced modules or parameters of the policy
        """
        self.flat.bring()
        if not self.structure.is_intact():
            raise ValueError(
                "policy.optimizer.step() replaced modules, parameters, hooks or methods of the policy in the middle of an "
                'update; make such changes between updates, or pass engine="autograd"'
            )

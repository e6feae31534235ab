"""
Policies with memory that Stable-Baselines3 and sb3-contrib lack: with a GRU, and with masks beside memory.

They are subclasses of sb3-contrib's recurrent policy, take its arguments and behave as it does. Importing this module needs
sb3-contrib. Names such as "MaskableMlpLstmPolicy" choose them.
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution, make_masked_proba_distribution
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_policyopt.maths.arrays import NumpyArray


class GRU(nn.GRU):
    """A GRU that is called as an LSTM is: its state is the hidden one, and the cell state is passed on as it came."""

    def forward(  # type: ignore[override]  # torch's takes the hidden state alone
        self, features: th.Tensor, states: tuple[th.Tensor, th.Tensor]
    ) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor]]:
        """
        Run the network over sequences.

        :param features: shape (longest, n_sequences, n_features)
        :param states: hidden and cell state, shape (n_layers, n_sequences, hidden) each
        :return: outputs, shape (longest, n_sequences, hidden); the states after them
        """
        outputs, hidden = super().forward(features, states[0])
        return outputs, (hidden, states[1])


RNNS: dict[str, type[nn.LSTM] | type[GRU]] = {"lstm": nn.LSTM, "gru": GRU}
"""By the name that ``rnn=`` takes."""


class RecurrentPolicy(RecurrentActorCriticPolicy):
    """
    sb3-contrib's recurrent policy with a choice of the recurrent network.

    :param observation_space: of the environments
    :param action_space: of the environments
    :param lr_schedule: of the optimizer
    :param options: sb3-contrib's arguments, such as ``lstm_hidden_size``
    :param rnn: "lstm" or "gru"
    :raises ValueError: if ``rnn`` is neither
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        rnn: str = "lstm",
        **options: Any,
    ) -> None:
        if rnn not in RNNS:
            raise ValueError(f"policy_kwargs: rnn must be one of {', '.join(RNNS)}, not {rnn!r}")
        super().__init__(observation_space, action_space, lr_schedule, **options)
        self.rnn = rnn
        if rnn == "lstm":
            return
        shape, kind = self.lstm_hidden_state_shape, RNNS[rnn]
        for name in ("lstm_actor", "lstm_critic"):
            if getattr(self, name) is not None:
                setattr(self, name, kind(self.features_dim, shape[2], num_layers=shape[0], **self.lstm_kwargs))
        rate = {"lr": lr_schedule(1)}
        self.optimizer = self.optimizer_class(self.parameters(), **rate, **self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What makes the same policy again."""
        layers, _, hidden_size = self.lstm_hidden_state_shape
        return {
            **super()._get_constructor_parameters(),
            "rnn": self.rnn,
            "lstm_hidden_size": hidden_size,
            "n_lstm_layers": layers,
            "shared_lstm": self.shared_lstm,
            "enable_critic_lstm": self.enable_critic_lstm,
            "lstm_kwargs": self.lstm_kwargs,
        }


class MaskableRecurrentPolicy(RecurrentPolicy):
    """
    A policy with memory whose actions may be forbidden by masks, for Discrete, MultiDiscrete and MultiBinary actions.

    Its methods take the arguments of sb3-contrib's recurrent policy, and ``action_masks`` of sb3-contrib's maskable one.
    """

    action_dist: MaskableDistribution  # type: ignore[assignment]  # which is another kind than SB3's

    def __init__(self, *spaces_and_schedule: Any, **options: Any) -> None:
        if "use_sde" in options:  # which sb3-contrib's RecurrentPPO passes; it would then act and train without the masks
            raise ValueError(
                "A policy with masks and memory has no class in sb3-contrib, and takes no use_sde: load and train it with "
                "sb3_policyopt's PPO, TRPO, MaskablePPO or MaskableTRPO"
            )
        super().__init__(*spaces_and_schedule, **options)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What makes the same policy again."""
        parameters = super()._get_constructor_parameters()
        return {name: value for name, value in parameters.items() if name != "use_sde"}

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Build the networks with a head for masked actions.

        :param lr_schedule: of the optimizer
        """
        super()._build(lr_schedule)
        self.action_dist = make_masked_proba_distribution(self.action_space)
        self.action_net = self.action_dist.proba_distribution_net(latent_dim=self.mlp_extractor.latent_dim_pi)
        if self.ortho_init:
            self.init_weights(self.action_net, gain=0.01)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        """
        The distribution of actions, without masks.

        :param latent_pi: shape (n, latent_dim_pi)
        :return: SB3's
        """
        return self.action_dist.proba_distribution(action_logits=self.action_net(latent_pi))

    def _masked(self, latent_pi: th.Tensor, action_masks: th.Tensor | NumpyArray | None) -> MaskableDistribution:
        distribution = self._get_action_dist_from_latent(latent_pi)
        assert isinstance(distribution, MaskableDistribution)
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution

    def _latents(
        self, obs: PyTorchObs, lstm_states: RNNStates, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, RNNStates]:
        """
        What the heads see.

        :param obs: observations
        :param lstm_states: states before them
        :param episode_starts: float, whose episode starts
        :return: of the actor, of the critic, and the states after the observations
        """
        pi, vf = (
            BasePolicy.extract_features(self, obs, extractor)
            for extractor in (self.pi_features_extractor, self.vf_features_extractor)
        )
        latent_pi, states_pi = self._process_sequence(pi, lstm_states.pi, episode_starts, self.lstm_actor)
        if self.lstm_critic is not None:
            latent_vf, states_vf = self._process_sequence(vf, lstm_states.vf, episode_starts, self.lstm_critic)
        else:
            latent_vf = latent_pi.detach() if self.shared_lstm else self.critic(vf)
            states_vf = states_pi
        forward_actor, forward_critic = self.mlp_extractor.forward_actor, self.mlp_extractor.forward_critic
        return forward_actor(latent_pi), forward_critic(latent_vf), RNNStates(states_pi, states_vf)

    def forward(
        self,
        obs: PyTorchObs,
        lstm_states: RNNStates,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: th.Tensor | NumpyArray | None = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, RNNStates]:
        """
        One step.

        :param obs: observations, first axis n_envs
        :param lstm_states: states before them
        :param episode_starts: float, whose episode starts, shape (n_envs,)
        :param deterministic: whether to take the most likely actions
        :param action_masks: which actions are allowed, shape (n_envs, n_choices); None for all
        :return: actions, values, log-probabilities, and the states after the step
        """
        latent_pi, latent_vf, states = self._latents(obs, lstm_states, episode_starts)
        distribution = self._masked(latent_pi, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape((-1, *(self.action_space.shape or ()))), self.value_net(latent_vf), log_prob, states

    def evaluate_actions(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        lstm_states: RNNStates,
        episode_starts: th.Tensor,
        action_masks: th.Tensor | NumpyArray | None = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Evaluate the actions of sequences of equal length, one after another.

        :param obs: observations, first axis n_sequences · length
        :param actions: the same first axis
        :param lstm_states: states before each sequence
        :param episode_starts: float, where an episode starts, shape (n_sequences · length,)
        :param action_masks: which actions were allowed, shape (n_sequences · length, n_choices); None for all
        :return: values, log-probabilities, entropies
        """
        latent_pi, latent_vf, _ = self._latents(obs, lstm_states, episode_starts)
        distribution = self._masked(latent_pi, action_masks)
        entropy = distribution.entropy()
        assert entropy is not None
        return self.value_net(latent_vf), distribution.log_prob(actions), entropy

    def get_distribution(
        self,
        obs: PyTorchObs,
        lstm_states: tuple[th.Tensor, th.Tensor],
        episode_starts: th.Tensor,
        action_masks: th.Tensor | NumpyArray | None = None,
    ) -> tuple[MaskableDistribution, tuple[th.Tensor, ...]]:
        """
        The distribution of actions.

        :param obs: observations
        :param lstm_states: of the actor, before them
        :param episode_starts: float, whose episode starts
        :param action_masks: which actions are allowed; None for all
        :return: the distribution, and the states after the observations
        """
        features = BasePolicy.extract_features(self, obs, self.pi_features_extractor)
        latent, states = self._process_sequence(features, lstm_states, episode_starts, self.lstm_actor)
        return self._masked(self.mlp_extractor.forward_actor(latent), action_masks), states

    def predict(
        self,
        observation: NumpyArray | dict[str, NumpyArray],
        state: tuple[NumpyArray, ...] | None = None,
        episode_start: NumpyArray | None = None,
        deterministic: bool = False,
        action_masks: NumpyArray | None = None,
    ) -> tuple[NumpyArray, tuple[NumpyArray, ...] | None]:
        """
        Actions for observations.

        :param observation: of one environment, or of several with n_envs as first axis
        :param state: hidden and cell state from the call before; None at first
        :param episode_start: whose episode starts, shape (n_envs,); None for none
        :param deterministic: whether to take the most likely actions
        :param action_masks: which actions are allowed, shape (n_envs, n_choices) or (n_choices,); None for all
        :return: actions, and the states for the next call
        """
        self.set_training_mode(False)
        obs, vectorized = self.obs_to_tensor(observation)
        n_envs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        layers, _, hidden_size = self.lstm_hidden_state_shape
        zeros = np.zeros((layers, n_envs, hidden_size), np.float32)
        hidden, cell = (th.as_tensor(part, dtype=th.float32, device=self.device) for part in state or (zeros, zeros))
        starts = np.zeros(n_envs, np.float32) if episode_start is None else np.asarray(episode_start, np.float32)
        with th.no_grad():
            distribution, after = self.get_distribution(
                obs, (hidden, cell), th.as_tensor(starts, device=self.device), action_masks
            )
            drawn = distribution.get_actions(deterministic=deterministic)
        actions: NumpyArray = drawn.cpu().numpy().reshape((-1, *(self.action_space.shape or ())))
        return actions if vectorized else actions.squeeze(0), tuple(part.cpu().numpy() for part in after)


class RecurrentCnnPolicy(RecurrentPolicy):
    """As :class:`RecurrentPolicy`, for images."""

    def __init__(
        self, *spaces_and_schedule: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **options: Any
    ) -> None:
        super().__init__(*spaces_and_schedule, features_extractor_class=features_extractor_class, **options)


class RecurrentMultiInputPolicy(RecurrentPolicy):
    """As :class:`RecurrentPolicy`, for dicts of observations."""

    def __init__(
        self,
        *spaces_and_schedule: Any,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **options: Any,
    ) -> None:
        super().__init__(*spaces_and_schedule, features_extractor_class=features_extractor_class, **options)


class MaskableRecurrentCnnPolicy(RecurrentCnnPolicy, MaskableRecurrentPolicy):
    """As :class:`MaskableRecurrentPolicy`, for images."""


class MaskableRecurrentMultiInputPolicy(RecurrentMultiInputPolicy, MaskableRecurrentPolicy):
    """As :class:`MaskableRecurrentPolicy`, for dicts of observations."""

"""Small policies in float64, of every kind of space, extractor and distribution."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor


class DoubleFlatten(FlattenExtractor):
    """SB3 casts observations to float32; here they are float64 again."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations.double())


class DoubleCombined(CombinedExtractor):
    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        return super().forward({key: value.double() for key, value in observations.items()})


class SmallCnn(BaseFeaturesExtractor):
    """A convolutional extractor with parameters, which actor and critic may share."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=3)
        self.layers = th.nn.Sequential(
            th.nn.Conv2d(observation_space.shape[0], 2, 3, stride=2), th.nn.Tanh(), th.nn.Flatten(), th.nn.LazyLinear(3)
        )
        self.layers(th.zeros(1, *observation_space.shape))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.tanh(self.layers(observations.double()))


VECTOR = spaces.Box(-1, 1, (3,))
IMAGE = spaces.Box(0, 255, (1, 8, 8), np.uint8)
DICTIONARY = spaces.Dict({"vector": VECTOR, "choice": spaces.Discrete(2)})
BOX = spaces.Box(-1, 1, (2,))
SDE: dict[str, Any] = {"use_sde": True, "log_std_init": -0.5}


@dataclass(frozen=True)
class PolicyCase:
    name: str
    action_space: spaces.Space[Any]
    observation_space: spaces.Space[Any]
    options: dict[str, Any] = field(default_factory=dict)
    policy_class: type[ActorCriticPolicy] = ActorCriticPolicy

    def policy(self) -> ActorCriticPolicy:
        th.manual_seed(0)
        options: dict[str, Any] = {
            "features_extractor_class": DoubleFlatten,
            "net_arch": {"pi": [4], "vf": [3]},
            **self.options,
        }
        policy = self.policy_class(self.observation_space, self.action_space, lambda _: 1e-3, ortho_init=False, **options)
        policy = policy.double()
        with th.no_grad():
            for parameter in policy.parameters():  # away from zero biases and equal standard deviations
                parameter.add_(0.2 * th.randn(parameter.shape, dtype=th.float64))
        if self.options.get("use_sde"):
            policy.reset_noise()
        return policy


CNN: dict[str, Any] = {"features_extractor_class": SmallCnn, "net_arch": []}
CASES = [
    PolicyCase("box", BOX, VECTOR),
    PolicyCase("discrete", spaces.Discrete(3), VECTOR),
    PolicyCase("multi_discrete", spaces.MultiDiscrete([2, 3]), VECTOR),
    PolicyCase("multi_binary", spaces.MultiBinary(2), VECTOR),
    PolicyCase("gsde", BOX, VECTOR, SDE),
    PolicyCase("gsde_expln_diagonal", BOX, VECTOR, {**SDE, "full_std": False, "use_expln": True}),
    PolicyCase("squashed_gsde", BOX, VECTOR, {**SDE, "squash_output": True}),
    PolicyCase("shared_cnn_box", BOX, IMAGE, CNN),
    PolicyCase("shared_cnn_discrete", spaces.Discrete(3), IMAGE, CNN),
    PolicyCase("separate_cnn", spaces.Discrete(3), IMAGE, {**CNN, "share_features_extractor": False}),
    PolicyCase(
        "dictionary",
        spaces.Discrete(3),
        DICTIONARY,
        {"features_extractor_class": DoubleCombined},
        MultiInputActorCriticPolicy,
    ),
]

ACTIONS = {
    "box": BOX,
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(2),
}
NETWORKS = {
    "stacked": {"pi": [5, 4], "vf": [5, 4]},
    "uneven": {"pi": [5], "vf": [4, 3]},
    "linear": {"pi": [], "vf": []},
}

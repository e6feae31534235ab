"""Extractors of the user's own that do more than compute features from their own parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from edited_models import ALGORITHMS, OPTIONS, STOCK, difference, parameters_of, update_twice
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from toy_environments import ACTION_SPACES, start, toy

from sb3_policyopt import PPO, TRPO

WIDTH = 64


class OfUnitNorm(BaseFeaturesExtractor):
    """Gives its weights other memory whenever it is called."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, WIDTH)
        self.layer = nn.Linear(observation_space.shape[0], WIDTH)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.layer.weight.data = nn.functional.normalize(self.layer.weight.data, dim=1)
        return th.tanh(self.layer(observations))


class OfUnitNormBackward(OfUnitNorm):
    """Does so in the backward pass."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space)
        self.layer.register_full_backward_hook(self._to_unit_norm)

    def _to_unit_norm(self, layer: Any, *_: Any) -> None:
        layer.weight.data = nn.functional.normalize(layer.weight.data, dim=1)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.tanh(self.layer(observations))


class Tied(BaseFeaturesExtractor):
    """Computes with a module or a parameter that is not its own."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, WIDTH)
        self.layer = nn.Linear(observation_space.shape[0], WIDTH)
        self.borrowed: list[Callable[[th.Tensor], th.Tensor]] = []

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features = th.tanh(self.layer(observations))
        for function in self.borrowed:
            features = features + function(features)
        return features


class TiedAlone(Tied):
    """Has no parameter of its own."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space)
        self.layer.requires_grad_(False)


def tie_to_head(policy: Any) -> Callable[[th.Tensor], th.Tensor]:
    return lambda x: th.tanh(x @ policy.action_net.weight.T) @ policy.action_net.weight


def tie_to_standard_deviation(policy: Any) -> Callable[[th.Tensor], th.Tensor]:
    return lambda x: x * policy.log_std.mean()


def tie_to_layers(policy: Any) -> Callable[[th.Tensor], th.Tensor]:
    return lambda x: policy.mlp_extractor.value_net(x) - policy.mlp_extractor.policy_net(x)


def model(cls: type[Any], extractor: type[Any], tie: Any = None, shared: bool = True, **options: Any) -> Any:
    kwargs = {"features_extractor_class": extractor, "share_features_extractor": shared}
    made = cls("MlpPolicy", toy(action=ACTION_SPACES["box_6"]), policy_kwargs=kwargs, **options)
    if tie is not None:
        for own in {made.policy.pi_features_extractor, made.policy.vf_features_extractor}:
            own.borrowed.append(tie(made.policy))
    start(made)
    return made


def pair(cls: type[Any], *how: Any) -> list[Any]:
    """
    The fast engine, and PPO of stock; for TRPO, which bounds another KL divergence than sb3-contrib by design, autograd.
    """
    other = model(STOCK[PPO], *how, **OPTIONS[PPO]) if cls is PPO else model(TRPO, *how, engine="autograd", **OPTIONS[TRPO])
    return [other, model(cls, *how, **OPTIONS[cls])]


def assert_same_updates(cls: type[Any], *how: Any) -> None:
    models = pair(cls, *how)
    before = parameters_of(models[0])
    update_twice(*models)
    whole_policy_acts = cls is TRPO and tie_to_layers in how
    assert models[1].engine_in_use.name == ("autograd" if whole_policy_acts else "hybrid")
    reference, ours = map(parameters_of, models)
    assert difference(ours, reference) <= 2e-5
    learnt = [name for name in before if "features_extractor" in name and models[0].policy.get_parameter(name).requires_grad]
    assert all(difference({name: before[name]}, {name: reference[name]}) > 2e-4 for name in learnt)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize(
    ("cls", "extractor"),
    [(PPO, OfUnitNorm), (TRPO, OfUnitNorm), (PPO, OfUnitNormBackward)],  # TRPO's products with F are backward passes, too
)
def test_weights_that_an_extractor_moves_are_trained(cls: type[Any], extractor: type[Any], shared: bool) -> None:
    assert_same_updates(cls, extractor, None, shared)


@ALGORITHMS
@pytest.mark.parametrize("extractor", [Tied, TiedAlone])
@pytest.mark.thinned(2)
@pytest.mark.parametrize("tie", [tie_to_head, tie_to_standard_deviation, tie_to_layers], ids=lambda tie: tie.__name__)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_what_an_extractor_computes_with_gets_that_gradient_too(
    cls: type[Any], extractor: type[Any], tie: Any, shared: bool
) -> None:
    assert_same_updates(cls, extractor, tie, shared)


def test_autograd_stays_where_the_actions_depend_on_the_critics_networks(capsys: pytest.CaptureFixture[str]) -> None:
    trpo = model(TRPO, Tied, tie_to_layers, verbose=1, **OPTIONS[TRPO]).learn(96)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Engine: ")]
    assert [line.split()[1] for line in lines] == ["hybrid", "autograd"]
    assert "the actions depend on parameters of the critic's networks" in lines[1]
    for own in {trpo.policy.pi_features_extractor, trpo.policy.vf_features_extractor}:
        own.borrowed.clear()
    trpo.policy.features_extractor.spare = nn.Identity()  # other modules: chosen anew
    assert trpo.prepare_engine().name == "hybrid"
    with pytest.raises(ValueError, match='engine="hybrid" cannot serve this policy: the actions depend on parameters of the'):
        model(TRPO, Tied, tie_to_layers, engine="hybrid", **OPTIONS[TRPO]).learn(32)


class Experts(BaseFeaturesExtractor):
    """One of four layers for each row, by its first entries."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(observation_space.shape[0], WIDTH) for _ in range(4)])

    def forward(self, observations: th.Tensor) -> th.Tensor:
        chosen = 2 * (observations[:, 0] > 0).long() + (observations[:, 1] > 0).long()
        features = observations.new_zeros(len(observations), WIDTH)
        for number, layer in enumerate(self.layers):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                features = features.index_put((rows,), layer(observations[rows]))
        return features


class OwnForward(ActorCriticPolicy):
    """Sends everything to autograd."""

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> Any:
        return super().forward(obs, deterministic)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("options", [{}, {"use_sde": True}, {"micro_batch_size": 3}], ids=str)
def test_trpo_finds_every_expert_of_a_rollout(shared: bool, options: dict[str, Any]) -> None:
    """Of a single observation, each of two extractors computes with one of its four layers."""
    kwargs = {"features_extractor_class": Experts, "share_features_extractor": shared}
    arguments = {**OPTIONS[TRPO], "n_steps": 64, "batch_size": 64, **options}
    trpo = TRPO(OwnForward, toy(action=ACTION_SPACES["box_6"], n_envs=1), policy_kwargs=kwargs, **arguments)
    extractors = {trpo.policy.pi_features_extractor, trpo.policy.vf_features_extractor}
    first = parameters_of(trpo)
    trpo.learn(64)
    model = trpo.engine_in_use
    assert model is not None and model.name == "autograd"
    of_actor = {id(parameter) for parameter in model.flat.parameters[: model.actor_count]}
    for extractor in extractors:
        for parameter in extractor.parameters():
            assert (id(parameter) in of_actor) == (extractor is trpo.policy.pi_features_extractor)
    assert all(float((first[name] - value).abs().max()) > 0 for name, value in parameters_of(trpo).items())
    assert trpo.learn(128, reset_num_timesteps=False).logger.name_to_value["train/kl_divergence_loss"] <= 0.01


class Attention(BaseFeaturesExtractor):
    """Each entry of an observation looks at all of them."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, WIDTH)
        self.embedding = nn.Linear(1, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        entries = self.embedding(observations[..., None])
        looked, _ = self.attention(entries, entries, entries, need_weights=False)
        features: th.Tensor = looked.mean(1)
        return features


@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_trpo_differentiates_attention_twice(engine: str) -> None:
    """Torch's fused attention has no second derivative; sb3-contrib's TRPO ends with an error here."""
    with pytest.raises(RuntimeError, match="not implemented"):
        model(STOCK[TRPO], Attention, **OPTIONS[TRPO]).learn(32)
    trpo = model(TRPO, Attention, engine=engine, **OPTIONS[TRPO]).learn(32)
    logged = trpo.logger.name_to_value
    assert logged["train/is_line_search_success"] == 1 and 0 < logged["train/kl_divergence_loss"] <= 0.01
    used = trpo.start_update()
    (rollout,) = used.data(trpo.rollout_buffer).whole()
    region = trpo.trust_region(used, rollout)
    direction = th.randn(used.n_actor, generator=th.Generator().manual_seed(0))
    direction *= 0.05 / direction.norm()
    curvature = float(direction @ region.fisher(direction))
    used.actor_parameters.add_(direction)
    used.flat.push()
    _, kl = region.evaluate()
    assert kl == pytest.approx(curvature / 2, rel=0.1)  # T4: KL = ½ΔᵀFΔ + O(Δ³)

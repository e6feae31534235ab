"""Whose memory the parameters are: what users hold, share, pickle and replace works as with stock SB3."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from edited_models import (
    ALGORITHMS,
    OPTIONS,
    POLICIES,
    SPACES,
    check,
    difference,
    model_of,
    parameters_of,
    update_twice,
)
from gymnasium import spaces
from sb3_contrib import TRPO as StockTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, start, toy

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.optimisation.flat_parameters import FlatParameters, is_held_elsewhere

# ------------------------------------------------------------------ what others hold follows the training


@ALGORITHMS
@SPACES
@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("what", ["state_dict", "arrays", "shared", "sent"])
def test_what_a_user_holds_follows_the_training(what: str, when: str, space: str, cls: type[Any], engine: str) -> None:
    engine = "auto" if engine == "closed_form" else engine
    model = model_of(cls, space, engine=engine)
    if when == "between":
        model.learn(32)
    policy = model.policy
    if what == "arrays":
        held = {name: parameter.detach().numpy() for name, parameter in policy.named_parameters()}
    elif what == "sent":  # the receiver's tensors are the sender's memory, as with every tensor of torch
        held = pickle.loads(ForkingPickler.dumps(policy.state_dict()))
    else:
        if what == "shared":
            policy.share_memory()
        held = policy.state_dict()
    before = parameters_of(model)
    model.learn(32, reset_num_timesteps=False)
    after = parameters_of(model)
    assert difference(before, after) > 1e-4
    for name, parameter in after.items():
        np.testing.assert_array_equal(held[name], parameter, err_msg=name)
    if what in ("shared", "sent"):
        assert all(parameter.is_shared() for parameter in policy.parameters())


@ALGORITHMS
def test_the_fast_engine_goes_on_when_weights_are_sent_to_workers(cls: type[Any]) -> None:
    model = model_of(cls).learn(32)
    ForkingPickler.dumps(model.policy.state_dict())
    model.learn(32, reset_num_timesteps=False)
    assert model.engine_in_use.name == "closed_form" and not model.engine_in_use.flat.owned


@SPACES
def test_gradients_that_a_user_keeps_stay_as_they_are(space: str, engine: str) -> None:
    engine = "auto" if engine == "closed_form" else engine
    model = model_of(PPO, space, engine=engine).learn(32)
    kept = [parameter.grad for parameter in model.policy.parameters()]
    copies = [gradient.clone() for gradient in kept]
    model.learn(32, reset_num_timesteps=False)
    assert all(th.equal(gradient, before) for gradient, before in zip(kept, copies, strict=True))
    assert not th.equal(model.policy.value_net.weight.grad, copies[-2])


def test_memory_is_given_back() -> None:
    """An engine that is replaced, and the model itself, leave nothing behind."""
    model = model_of(PPO).learn(32)
    engine = weakref.ref(model.engine_in_use)
    model.policy.mlp_extractor.policy_net[1] = nn.ReLU()
    model.learn(32, reset_num_timesteps=False)
    gc.collect()
    assert engine() is None
    policy = weakref.ref(model.policy)
    del model
    gc.collect()
    assert policy() is None


# ------------------------------------------------------------------ flat parameters


def test_each_parameter_has_a_storage_of_its_own_in_one_memory() -> None:
    parameters = [nn.Parameter(th.randn(shape)) for shape in ((3, 2), (4,), ())]
    before = [parameter.detach().clone() for parameter in parameters]
    flat = FlatParameters(parameters)
    assert flat.owned and [p.untyped_storage().nbytes() for p in parameters] == [24, 16, 4]
    assert [p.data_ptr() - flat.vector.data_ptr() for p in parameters] == [0, 24, 40]
    assert all(th.equal(p, b) for p, b in zip(parameters, before, strict=True))
    flat.vector.zero_()
    assert not any(p.any() for p in parameters)
    assert not any(is_held_elsewhere(p) for p in parameters)
    del flat
    gc.collect()
    assert not any(p.any() for p in parameters)  # the memory lives as long as a parameter does


def test_parameters_that_are_not_separate_numbers_are_refused() -> None:
    one = nn.Parameter(th.zeros(4))
    with pytest.raises(ValueError, match="stands twice"):
        FlatParameters([one, one])
    with pytest.raises(ValueError, match=r"shapes .*\(2, 2\).*share memory"):
        FlatParameters([one, nn.Parameter(one.data.view(2, 2))])
    with pytest.raises(ValueError, match="share memory"):
        FlatParameters([one, nn.Parameter(one.data[2:])])


def test_a_parameter_of_another_kind_needs_another_vector() -> None:
    module = nn.Linear(2, 2)
    flat = FlatParameters([*module.parameters()])
    assert flat.pull()
    module.weight.data = module.weight.data.view(4)
    assert not flat.is_of_same_kind()
    module.weight.data = module.weight.data.view(2, 2)
    assert flat.is_of_same_kind()
    module.double()
    assert not flat.pull()


# ------------------------------------------------------------------ pickles


@ALGORITHMS
@SPACES
def test_pickles_are_no_larger_than_stocks(space: str, cls: type[Any]) -> None:
    of_stock: dict[type[Any], Any] = {PPO: StockPPO, TRPO: StockTRPO}
    stock = of_stock[cls]
    sizes = []
    for kind in (stock, cls):
        model = kind(POLICIES[space], toy(OBSERVATION_SPACES[space]), **OPTIONS[cls]).learn(32)
        things = [
            model.policy.state_dict(),
            model.get_parameters(),
            model.policy.optimizer.state_dict(),
            model.policy.action_net,
        ]
        things.append(pickle.loads(pickle.dumps(model.policy.state_dict())))
        sizes.append([len(pickle.dumps(thing)) for thing in things])
        file = io.BytesIO()
        th.save(model.policy.action_net.state_dict(), file)
        sizes[-1].append(len(file.getvalue()))
        pickle.dumps(model.policy)
    assert all(ours <= 1.1 * theirs for theirs, ours in zip(*sizes, strict=True)), sizes


@ALGORITHMS
@SPACES
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_of_the_model_trains_on_by_itself(how: str, space: str, cls: type[Any]) -> None:
    model = model_of(cls, space).learn(32)
    before = parameters_of(model)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    twin.learn(32, reset_num_timesteps=False)
    assert difference(before, parameters_of(model)) == 0 and difference(before, parameters_of(twin)) > 1e-4
    assert twin.engine_in_use.policy is twin.policy and twin.engine_in_use.name == model.engine_in_use.name


def test_weights_are_written_with_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = model_of(PPO).learn(32)
    safetensors.save_model(model.policy, str(tmp_path / "policy.safetensors"))
    other = model_of(PPO, seed=1)
    safetensors.load_model(other.policy, str(tmp_path / "policy.safetensors"))
    assert difference(parameters_of(model), parameters_of(other)) == 0


# ------------------------------------------------------------------ modules


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (nn.Linear, "forward", lambda self, x: 1.1 * nn.functional.linear(x, self.weight, self.bias)),
        (nn.Tanh, "forward", lambda self, x: th.tanh(1.1 * x)),
        (th.distributions.Normal, "entropy", lambda self: 2 * self.stddev),
        (ActorCriticPolicy, "predict_values", lambda self, obs: 2 * self.value_net(self.mlp_extractor.forward_critic(obs))),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_method_replaced_on_a_class_is_honoured(
    owner: type[Any], name: str, replacement: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(PPO).learn(32)
    assert model.engine_in_use.name == "closed_form"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement)
        model.learn(32, reset_num_timesteps=False)
        assert model.engine_in_use.name == "autograd" and name in model.engine_in_use.reason
        check(PPO, "box", "box_6", [[], []], [[], []])
    model.learn(32, reset_num_timesteps=False)
    assert model.engine_in_use.name == "closed_form"


@ALGORITHMS
@pytest.mark.parametrize(
    ("activation", "constant"), [(nn.LeakyReLU, "negative_slope"), (nn.ELU, "alpha"), (nn.Softplus, "beta")]
)
def test_constants_of_activations_are_read_anew(activation: type[Any], constant: str, cls: type[Any]) -> None:
    model = model_of(cls, policy_kwargs={"activation_fn": activation}).learn(32)
    modules = [module for module in model.policy.modules() if type(module) is activation]
    observation = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)

    def assert_same_values() -> None:
        model.learn(32, reset_num_timesteps=False)
        with th.no_grad():
            values = model.policy.predict_values(th.as_tensor(observation)).flatten()
        np.testing.assert_allclose(model.engine_in_use.values(observation), values, rtol=1e-5, atol=1e-6)

    for module in modules:
        setattr(module, constant, 0.5)
    assert_same_values()
    assert model.engine_in_use.name == ("autograd" if activation is nn.Softplus else "closed_form")
    setattr(modules[0], constant, 0.25)  # now the layers differ
    assert_same_values()
    assert model.engine_in_use.name == "autograd"


class Dangling(ActorCriticPolicy):
    """Has a layer that no loss depends on."""

    def _build(self, lr_schedule: Any) -> None:
        self.dangling = nn.Linear(2, 2)
        super()._build(lr_schedule)


class PartlyUsed(BaseFeaturesExtractor):
    """Has a layer that it does not use."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space, 3)
        self.unused, self.used = nn.Linear(2, 2), nn.Linear(space.shape[0], 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.used(observations)


@pytest.mark.parametrize("where", ["policy", "extractor"])
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.AdamW, th.optim.SGD])
def test_what_no_loss_depends_on_is_not_stepped(where: str, optimizer: type[Any]) -> None:
    """Weight decay would shrink it; stock leaves it, as it has no gradient."""
    policy = Dangling if where == "policy" else "MlpPolicy"
    kwargs = {"optimizer_class": optimizer, "optimizer_kwargs": {"weight_decay": 0.5}}
    if where == "extractor":
        kwargs["features_extractor_class"] = PartlyUsed
    models: list[Any] = [kind(policy, toy(), **OPTIONS[PPO], policy_kwargs=kwargs) for kind in (StockPPO, PPO)]
    stock, ours = models
    before = parameters_of(ours)
    for model in models:
        start(model)
    update_twice(stock, ours)
    assert difference(parameters_of(stock), parameters_of(ours)) <= 5e-6
    after = parameters_of(ours)
    names = [name for name in after if "dangling" in name or "unused" in name]
    assert len(names) in (2, 6) and all(th.equal(after[name], before[name]) for name in names)
    assert ours.engine_in_use.name == ("autograd" if where == "policy" else "hybrid")


# ------------------------------------------------------------------ what is frozen, shared or cannot be told apart


def sides(policy: Any) -> dict[str, list[nn.Parameter]]:
    actor = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters(), policy.log_std]
    return {"actor": actor, "critic": [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]}


@ALGORITHMS
@pytest.mark.parametrize("frozen", ["actor", "critic"])
def test_what_is_not_frozen_is_trained(frozen: str, cls: type[Any], engine: str) -> None:
    model = model_of(cls, engine="auto" if engine == "closed_form" else engine)
    parts = sides(model.policy)
    for parameter in parts[frozen]:
        parameter.requires_grad_(False)
    before = {side: [p.detach().clone() for p in parameters] for side, parameters in parts.items()}
    model.learn(64)
    moved = {side: any(not th.equal(p, b) for p, b in zip(parts[side], before[side], strict=True)) for side in parts}
    assert not moved[frozen] and moved["critic" if frozen == "actor" else "actor"]


@ALGORITHMS
def test_a_policy_without_trainable_parameters_is_refused(cls: type[Any]) -> None:
    model = model_of(cls)
    model.policy.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        model.learn(32)


class Fickle(BaseFeaturesExtractor):
    """Takes only observations that are real, counts what it sees outside of training, and notes how often it is asked."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space, 2)
        self.layer = nn.Linear(space.shape[0], 2)
        self.seen: th.Tensor
        self.register_buffer("seen", th.zeros(()))
        self.calls: list[tuple[bool, int]] = []

    def forward(self, observations: th.Tensor) -> th.Tensor:
        if not (observations >= 1).all():
            raise ValueError("this observation was made up")
        self.calls.append((self.training, len(observations)))
        if not self.training:
            self.seen += len(observations)
        return self.layer(observations)


class FromOne(gym.Env):
    observation_space, action_space = spaces.Box(1, 9, (3,), np.float32), ACTION_SPACES["discrete"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(1, 9, 3).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        return (
            self.np_random.uniform(1, 9, 3).astype(np.float32),
            float(action),
            bool(self.np_random.random() < 0.1),
            False,
            {},
        )


@ALGORITHMS
def test_policies_see_real_observations_only_and_what_they_count_is_stocks(cls: type[Any], engine: str) -> None:
    of_stock: dict[type[Any], Any] = {PPO: StockPPO, TRPO: StockTRPO}
    stock = of_stock[cls]
    options: dict[str, Any] = {**OPTIONS[cls], "policy_kwargs": {"features_extractor_class": Fickle}}
    models = [kind("MlpPolicy", FromOne(), **options) for kind in (stock, cls)]
    models.append(cls("MlpPolicy", FromOne(), **options, engine="autograd"))
    for model in models:
        model.learn(32)
    seen = [float(model.policy.features_extractor.seen) for model in models]
    assert seen[1] == seen[2] == seen[0] > 32
    if cls is PPO:  # nothing has to be told apart, so that the policy is called as often as stock calls it
        assert models[2].policy.features_extractor.calls == models[0].policy.features_extractor.calls


def test_an_actor_that_comes_to_use_the_critics_parameters_moves_them() -> None:
    class Changing(ActorCriticPolicy):
        borrows = False

        def get_distribution(self, obs: Any) -> Any:
            distribution: Any = super().get_distribution(obs)
            if self.borrows:
                distribution.distribution.loc = distribution.distribution.loc + 0.1 * self.predict_values(obs)
            return distribution

    model: Any = TRPO(Changing, toy(), **OPTIONS[TRPO]).learn(32)
    n_parameters = sum(parameter.numel() for parameter in model.policy.parameters())
    assert model.engine_in_use.n_actor < n_parameters
    model.policy.borrows = True
    model.learn(32, reset_num_timesteps=False)
    assert model.engine_in_use.n_actor == n_parameters


def test_a_surrogate_that_depends_on_the_critic_is_an_error() -> None:
    class Mixed(TRPO):
        def surrogate(self, batch: Any, log_prob: th.Tensor) -> th.Tensor:
            return super().surrogate(batch, log_prob) + self.policy.predict_values(batch.observations).mean()

    with pytest.raises(ValueError, match=r"depends on .*value_net.* compute the surrogate from log_prob"):
        Mixed("MlpPolicy", toy(), **OPTIONS[TRPO]).learn(32)

"""PPO takes SB3's very steps: from the same parameters, rollout and random seed to the same parameters, to rounding."""

import copy
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.torch_layers import FlattenExtractor
from toy_environments import ACTION_SPACES, IMAGE, OBSERVATION_SPACES, VECTOR, collect, copy_rollout, start, toy

from sb3_policyopt import PPO
from sb3_policyopt.models.networks import library

BOX, DISCRETE = ACTION_SPACES["box_6"], ACTION_SPACES["discrete"]
# Adam divides a gradient by its own size, so that a parameter whose gradient is mere rounding may move by a noticeable part
# of a step in any direction. A step is at most the learning rate (3e-4); the README states the bound, a 300th of one.
TOLERANCE = 1e-6


class ScaledExtractor(FlattenExtractor):
    """A features extractor with parameters, shared by actor and critic unless told otherwise."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space)
        self.layer = th.nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.tanh(self.layer(super().forward(observations)))


class Case(NamedTuple):
    """One way to configure PPO."""

    arguments: dict[str, Any] = {}
    action: spaces.Space[Any] = BOX
    observation: spaces.Space[Any] = VECTOR
    policy: str = "MlpPolicy"


MLP_CASES = {
    "defaults": Case(),
    **{f"{name}, entropy": Case({"ent_coef": 0.02}, action=space) for name, space in ACTION_SPACES.items()},
    "value clipping": Case({"clip_range_vf": 0.01}),
    "value clipping, discrete": Case({"clip_range_vf": 0.01, "ent_coef": 0.01}, DISCRETE),
    "target_kl": Case({"target_kl": 0.002, "n_epochs": 20, "learning_rate": 3e-3}),
    "target_kl, discrete": Case({"target_kl": 0.0005, "n_epochs": 20, "learning_rate": 3e-3}, DISCRETE),
    "truncated minibatch": Case({"n_steps": 25, "batch_size": 32}),
    "truncated minibatch of one": Case({"n_steps": 10, "batch_size": 13}, DISCRETE),
    "one minibatch": Case({"batch_size": 128}),
    "no normalisation": Case({"normalize_advantage": False, "n_steps": 4, "batch_size": 1, "n_epochs": 2}),
    "ReLU": Case({"policy_kwargs": {"activation_fn": th.nn.ReLU}}),
    "uneven net_arch": Case({"policy_kwargs": {"net_arch": {"pi": [32, 16, 8], "vf": [24]}}}, DISCRETE),
    "linear": Case({"policy_kwargs": {"net_arch": []}}),
    "initial log_std": Case({"policy_kwargs": {"log_std_init": -1.0, "ortho_init": False}}),
    "weight decay": Case({"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.01, "betas": (0.8, 0.99), "eps": 1e-7}}}),
    "gradient clipping": Case({"max_grad_norm": 0.01}),
    "schedules": Case({"learning_rate": lambda p: 3e-4 * p, "clip_range": lambda p: 0.01 + 0.1 * p}),
    "observations of integers": Case(observation=OBSERVATION_SPACES["multi_binary"]),
    "matrix observations": Case(observation=OBSERVATION_SPACES["matrix"]),
    "discrete observations": Case(observation=OBSERVATION_SPACES["discrete"], action=DISCRETE),
}
OTHER_CASES = {
    "other optimizer": Case({"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}),
    "shared extractor": Case({"policy_kwargs": {"features_extractor_class": ScaledExtractor}}),
    "separate extractors": Case(
        {"policy_kwargs": {"features_extractor_class": ScaledExtractor, "share_features_extractor": False}}
    ),
    "gSDE": Case({"use_sde": True}),
    "gSDE, entropy": Case({"use_sde": True, "sde_sample_freq": 4, "ent_coef": 0.01}),
    "gSDE, squashed": Case({"use_sde": True, "ent_coef": 0.01, "policy_kwargs": {"squash_output": True}}),
    "gSDE, full_std": Case({"use_sde": True, "policy_kwargs": {"full_std": False, "use_expln": True}}),
    "dict observations": Case(observation=OBSERVATION_SPACES["dict"], action=DISCRETE, policy="MultiInputPolicy"),
    "multi-discrete observations": Case(observation=OBSERVATION_SPACES["multi_discrete"]),
    "images": Case({"n_steps": 4, "n_epochs": 2, "batch_size": 8}, DISCRETE, IMAGE, "CnnPolicy"),
    "images, separate extractors": Case(
        {"n_steps": 4, "n_epochs": 2, "batch_size": 8, "policy_kwargs": {"share_features_extractor": False}},
        DISCRETE,
        IMAGE,
        "CnnPolicy",
    ),
    "dict with image": Case(
        {"n_steps": 4, "n_epochs": 2, "batch_size": 8},
        BOX,
        OBSERVATION_SPACES["dict_with_image"],
        "MultiInputPolicy",
    ),
}


def twins(case: Case, **ours: Any) -> tuple[StockPPO, PPO]:
    """SB3's model and ours with the same parameters."""
    arguments: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 3, "seed": 0, "device": "cpu", **case.arguments}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        stock = StockPPO(case.policy, toy(case.observation, case.action), **copy.deepcopy(arguments))
        model = PPO(case.policy, toy(case.observation, case.action), **copy.deepcopy(arguments), **ours)
    model.policy.load_state_dict(stock.policy.state_dict())
    return stock, model


def update_both(stock: StockPPO, ours: PPO, seed: int, progress_remaining: float = 1.0) -> None:
    """One rollout by SB3's model, one update of both models from it."""
    if ours._last_obs is None:
        start(ours)
    collect(stock)
    copy_rollout(stock.rollout_buffer, ours.rollout_buffer)
    for model in (stock, ours):
        model._current_progress_remaining = progress_remaining
        np.random.seed(seed)
        th.manual_seed(seed)
        model.train()


def parity_error(stock: StockPPO, ours: PPO) -> float:
    """Largest difference of any parameter."""
    theirs = ours.policy.state_dict()
    return max(float((value - theirs[name]).abs().max()) for name, value in stock.policy.state_dict().items())


def assert_equal_to_rounding(case: Case, **options: Any) -> None:
    stock, ours = twins(case, **options)
    before = copy.deepcopy(stock.policy.state_dict())
    for seed in range(2):  # the second update goes on from the optimizer state of the first
        update_both(stock, ours, seed, progress_remaining=1 - 0.4 * seed)
        assert ours._n_updates == stock._n_updates
    moved = max(float((value - before[name]).abs().max()) for name, value in stock.policy.state_dict().items())
    assert moved > 100 * TOLERANCE, "nothing to compare: SB3's parameters hardly moved"
    assert parity_error(stock, ours) <= TOLERANCE
    assert_same_optimizer_state(stock, ours)
    assert_same_metrics(stock, ours)


def assert_same_optimizer_state(stock: StockPPO, ours: PPO) -> None:
    state, our_state = (model.policy.optimizer.state_dict()["state"] for model in (stock, ours))
    assert our_state.keys() == state.keys()
    for index, entries in state.items():
        assert our_state[index].keys() == entries.keys()
        for name, value in entries.items():
            scale = float(value.abs().max())
            assert our_state[index][name].shape == value.shape
            assert float((our_state[index][name] - value).abs().max()) <= 1e-3 * scale + 1e-9, (index, name)
        if "step" in entries:
            assert float(our_state[index]["step"]) == float(entries["step"])


def assert_same_metrics(stock: StockPPO, ours: PPO) -> None:
    theirs, mine = stock.logger.name_to_value, ours.logger.name_to_value
    assert theirs.keys() <= mine.keys()
    last_only = {"train/loss"} if stock.n_epochs > 1 else set()  # SB3's is of the last minibatch
    last_only |= {"train/approx_kl"} if stock.n_epochs > 1 else set()  # and this of the last epoch
    for name in theirs.keys() - last_only:
        assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def names(cases: dict[str, Case]) -> list[Any]:
    """One case of each distribution and kind of policy is fast."""
    few = {"defaults", *(f"{space}, entropy" for space in ACTION_SPACES), "gSDE", "images"}
    return [pytest.param(name, marks=pytest.mark.fast) if name in few else name for name in cases]


@pytest.mark.parametrize("name", names(MLP_CASES))
def test_P5_P6_an_update_is_sb3s(name: str, engine: str) -> None:
    assert_equal_to_rounding(MLP_CASES[name], engine=engine)


@pytest.mark.parametrize("name", MLP_CASES)
def test_P5_P6_an_update_in_torch_without_a_graph_is_sb3s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "faster_library", lambda *_: "torch")
    assert_equal_to_rounding(MLP_CASES[name], engine="closed_form")


@pytest.mark.parametrize("name", names(OTHER_CASES))
def test_P5_P6_an_update_of_other_policies_is_sb3s(name: str) -> None:
    assert_equal_to_rounding(OTHER_CASES[name])


def steps_of_adam(model: StockPPO | PPO) -> float:
    return float(next(iter(model.policy.optimizer.state_dict()["state"].values()))["step"])


def test_the_update_stops_where_sb3_stops_whatever_the_target(engine: str) -> None:
    """Targets 11 % apart, of which some lie just below, some just above what lets another minibatch pass."""
    models = stock, ours = twins(Case({"learning_rate": 1e-3, "n_epochs": 2}), engine=engine)
    first, stops = copy.deepcopy(stock.policy.state_dict()), [0.0]
    for target in np.geomspace(5e-4, 1e-2, 30):
        for model in models:
            model.policy.load_state_dict(first)
            model.target_kl = float(target)
        update_both(stock, ours, seed=0)
        steps = [steps_of_adam(model) for model in models]
        assert steps[0] == steps[1], target
        stops.append(steps[0])
    assert len(set(np.diff(stops))) >= 4, "the targets decided nothing"

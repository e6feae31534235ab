"""Nonsense is refused at construction, with the argument's name in the message."""

import inspect
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from toy_environments import toy

from sb3_policyopt import PPO, TRPO

pytestmark = pytest.mark.fast

NAN = math.nan
INTEGERS = [1.5, "8", None, NAN, np.array([8]), th.tensor([8, 8])]
NOT_NEGATIVE = [-1, *INTEGERS]
COUNTS = [0, *NOT_NEGATIVE]
SCHEDULES = ["lin_x", "lin_", "lin_nan", "exp_0.1", "0.1"]
FINITE = [NAN, math.inf, "nonsense", [0.1], np.array([0.1]), th.tensor(0.1, requires_grad=True), 1j, *SCHEDULES]
NUMBERS = [-0.1, -math.inf, "lin_-0.1", *FINITE]
OR_INFINITE = [value for value in NUMBERS if value != math.inf]
FRACTIONS = [-0.01, 1.01, NAN, "0.9", None, [0.9]]
FLAGS = ["yes", "", 2, -1, NAN, [], [True]]
SHARED: dict[str, Any] = {
    "learning_rate": [*NUMBERS, None],
    "n_steps": COUNTS,
    "batch_size": COUNTS,
    "gamma": FRACTIONS,
    "gae_lambda": FRACTIONS,
    "normalize_advantage": FLAGS,
    "use_sde": FLAGS,
    "check_observations": FLAGS,
    "value_target": ["td", "TD_LAMBDA", None, 1, ["td_zero"]],
    "engine": ["numpy", None, 1],
    "micro_batch_size": [0, -4, 2.5, "8"],
    "stats_window_size": [-1, 1.5, "8"],
    "sde_sample_freq": [1.5, "4", None],
    "seed": [-1, 1.5, "0"],
    "verbose": [1.5, "1", None],
}
TABLES = {
    PPO: {
        **SHARED,
        "n_epochs": COUNTS,
        "clip_range": [*OR_INFINITE, None],
        "clip_range_vf": [0, 0.0, *OR_INFINITE],
        "ent_coef": [*FINITE, -math.inf, None],
        "vf_coef": [*NUMBERS, None],
        "max_grad_norm": [*OR_INFINITE, None],
        "target_kl": OR_INFINITE,
        "value_clipping": ["max", None, 1],
        "kl_stop": ["never", None, 1],
    },
    TRPO: {
        **SHARED,
        "target_kl": [*NUMBERS, None],
        "cg_damping": [*NUMBERS, None],
        "cg_max_steps": COUNTS,
        "line_search_shrinking_factor": [1.5, -0.5, NAN, "0.8", None],
        "line_search_max_iter": NOT_NEGATIVE,
        "n_critic_updates": NOT_NEGATIVE,
        "sub_sampling_factor": INTEGERS,
        "kl_reduction": ["max", None, 1],
        "line_search": FLAGS,
    },
}
CASES = [(cls, name, value) for cls, table in TABLES.items() for name, values in table.items() for value in values]


@pytest.fixture(scope="module")
def env() -> VecEnv:
    return toy(n_envs=2)


@pytest.mark.parametrize(("cls", "name", "value"), CASES, ids=lambda x: getattr(x, "__name__", repr(x)))
def test_nonsense_is_refused_by_name(cls: type[Any], name: str, value: Any, env: VecEnv) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        cls("MlpPolicy", env, **{name: value}, device="cpu", _init_setup_model=False)


ALGORITHMS: list[Any] = [PPO, TRPO]
SETTINGS = [(cls, name, TABLES[cls][name][0]) for cls in ALGORITHMS for name in cls.settings if name in TABLES[cls]]


@pytest.fixture(scope="module")
def zips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zips")
    for cls in (PPO, TRPO):
        cls("MlpPolicy", toy(n_envs=2), n_steps=8, batch_size=16, device="cpu").save(folder / cls.__name__)
    return folder


@pytest.mark.parametrize(("cls", "name", "value"), SETTINGS, ids=lambda x: getattr(x, "__name__", repr(x)))
def test_nonsense_that_is_assigned_or_loaded_is_refused_by_name(
    cls: type[Any], name: str, value: Any, zips: Path, env: VecEnv
) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        cls.load(zips / cls.__name__, env=env, **{name: value})
    model = cls.load(zips / cls.__name__, env=env, device="cpu")
    setattr(model, name, value)
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        model.learn(16)


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_what_stock_answers_with_an_unrelated_error_is_named(cls: type[Any], env: VecEnv) -> None:
    with pytest.raises(ValueError, match=r"env is None: pass an environment"):
        cls("MlpPolicy", None)
    with pytest.raises(ValueError, match=r"device must be 'auto', .*'gpu'"):
        cls("MlpPolicy", env, device="gpu")
    with pytest.raises(ValueError, match=r"learning_rate must be .*, got '1e-3', which is a number without its quotes"):
        cls("MlpPolicy", env, learning_rate="1e-3")
    with pytest.raises(TypeError, match=r"rollout_buffer_class must be a class of rollout buffers, got 'x'"):
        cls("MlpPolicy", env, rollout_buffer_class="x")
    for vectorized in (
        gym.make_vec("CartPole-v1", 2),
        gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"),
    ):
        with pytest.raises(
            TypeError, match=r"env: \w+ is a vector environment of Gymnasium; wrap it by .*from_gymnasium_vector"
        ):
            cls("MlpPolicy", vectorized)


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ([1], r"policy_kwargs must be a dict .*got \[1\]"),
        ({"activation_fn": "relu"}, r"policy_kwargs: activation_fn must be a class .*'relu'"),
        ({"optimizer_class": "adam"}, r"policy_kwargs: optimizer_class must be a class .*'adam'"),
        ({"features_extractor_class": "CNN"}, r"policy_kwargs: features_extractor_class must be a class .*'CNN'"),
        ({"net_arch": "64,64"}, r"policy_kwargs: net_arch must be a list .*'64,64'"),
    ],
)
def test_arguments_of_the_policy_are_named(cls: type[Any], policy_kwargs: Any, message: str, env: VecEnv) -> None:
    with pytest.raises(TypeError, match=message):
        cls("MlpPolicy", env, policy_kwargs=policy_kwargs)


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_a_policy_that_does_not_exist_is_named_with_those_that_do(cls: type[Any], env: VecEnv) -> None:
    for name, meant in (("mlp", "MlpPolicy"), ("cnnpolicy", "CnnPolicy"), ("MlpLSTMPolicy", "MlpLstmPolicy")):
        with pytest.raises(
            ValueError, match=rf"Policy {name} unknown, did you mean {meant}\? A policy is a class or one of Mlp"
        ):
            cls(name, env)
    with pytest.raises(ValueError, match=r"Policy 7 unknown\. A policy is .*MaskableMultiInputLstmPolicy$"):
        cls("7", env)
    for nothing in (None, 3):
        with pytest.raises(
            ValueError, match=rf"policy: {cls.__name__} does not serve {nothing} \(which is neither a name nor a"
        ):
            cls(nothing, env)


@pytest.mark.parametrize("env", [lambda: None, [1], object()], ids=["function", "list", "object"])
def test_what_is_no_environment_is_refused_wherever_it_is_given(env: Any, zips: Path) -> None:
    model = PPO.load(zips / "PPO", device="cpu")
    for give in (lambda: PPO("MlpPolicy", env), lambda: PPO.load(zips / "PPO", env=env), lambda: model.set_env(env)):
        with pytest.raises(
            TypeError, match=r"env must be an environment or a VecEnv \(for a new model also the name .*\), got .*make_vec"
        ):
            give()


def test_a_name_is_no_environment_for_a_model_that_is_there(zips: Path) -> None:
    model = PPO.load(zips / "PPO", device="cpu")
    name: Any = "CartPole-v1"
    for give in (lambda: PPO.load(zips / "PPO", env=name), lambda: model.set_env(name)):
        with pytest.raises(TypeError, match=r"or a VecEnv \(for a new model .*\), got 'CartPole-v1'; make_vec_env"):
            give()


def test_learn_names_what_it_cannot_take(zips: Path, env: VecEnv) -> None:
    with pytest.raises(ValueError, match=r"env: the model has none; give it one by load\(path, env=env\) or set_env"):
        PPO.load(zips / "PPO", device="cpu").learn(16)
    model = PPO.load(zips / "PPO", env=env, device="cpu")
    mistakes: list[tuple[type[Exception], str, Any]] = [
        (TypeError, r"total_timesteps must be a number, got '100'", {"total_timesteps": "100"}),
        (ValueError, r"total_timesteps must be a number, got nan", {"total_timesteps": NAN}),
        (ValueError, r"log_interval must be at least 1, got 0", {"log_interval": 0}),
        (TypeError, r"log_interval must be an integer, got '1'", {"log_interval": "1"}),
        (TypeError, r"callback must be a callback of SB3, a list of them or a function, got 3", {"callback": 3}),
    ]
    for error, message, mistake in mistakes:
        with pytest.raises(error, match=message):
            model.learn(**{"total_timesteps": 16, **mistake})
    assert model.num_timesteps == 0
    model.learn(16, callback=[], log_interval=None)  # type: ignore[arg-type]  # no logs
    assert model.num_timesteps == 16


def test_load_names_what_it_cannot_take(zips: Path, env: VecEnv) -> None:
    with pytest.raises(ValueError, match=r"device must be 'auto', .*'gpu'"):
        PPO.load(zips / "PPO", device="gpu")
    for nothing in (None, 3):
        with pytest.raises(TypeError, match=r"Path .* parameter has invalid type"):  # stock's words
            PPO.load(nothing)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"seed must be an integer, got 'x'"):
        PPO.load(zips / "PPO", env=env, seed="x")
    with pytest.raises(ValueError, match=r"PPO\.zip was saved by PPO, and not by TRPO: target_kl .*; take PPO\.load$"):
        TRPO.load(zips / "PPO.zip", env=env, target_kl=NAN)


@pytest.mark.parametrize("factor", [-1, 0, 1])
def test_a_factor_of_one_or_less_takes_all_samples(factor: int) -> None:
    model = TRPO("MlpPolicy", toy(n_envs=2), n_steps=8, batch_size=16, sub_sampling_factor=factor, seed=0).learn(32)
    assert model.n_iterations == 2


def test_a_clip_range_may_be_assigned(zips: Path) -> None:
    load = partial(PPO.load, zips / "PPO", device="cpu")
    models = [load(env=toy(n_envs=2), clip_range=0.05), load(env=toy(n_envs=2))]
    models[1].clip_range = 0.05  # type: ignore[assignment]
    for model in models:
        np.random.seed(0)
        th.manual_seed(0)
        model.set_random_seed(0)
        model.learn(32)
    first, second = (th.nn.utils.parameters_to_vector(model.policy.parameters()) for model in models)
    assert th.equal(first, second) and models[1].clip_range(0.5) == 0.05
    models[1].clip_range_vf = "lin_0.2"  # type: ignore[assignment]
    models[1].learn(16)
    assert models[1].clip_range_vf is not None and models[1].clip_range_vf(0.5) == pytest.approx(0.1)
    for nonsense in (-0.1, "fast", None):
        models[1].clip_range = nonsense  # type: ignore[assignment]
        with pytest.raises((ValueError, TypeError), match=r"\bclip_range\b"):
            models[1].learn(16)


def test_schedules_have_their_words_in_load_too(zips: Path, env: VecEnv) -> None:
    model = PPO.load(
        zips / "PPO", env=env, device="cpu", learning_rate="lin_0.01", clip_range="lin_0.1", clip_range_vf="lin_0.3"
    )
    model.learn(32)
    assert model.lr_schedule(0.5) == pytest.approx(0.005) and model.clip_range(0.5) == pytest.approx(0.05)
    assert model.clip_range_vf(0.5) == pytest.approx(0.15)
    with pytest.raises(ValueError, match=r"clip_range must be .*lin_X"):
        PPO.load(zips / "PPO", env=env, clip_range="linear")


SCHEDULED = [
    *(
        (PPO, name)
        for name in ("learning_rate", "clip_range", "clip_range_vf", "ent_coef", "vf_coef", "max_grad_norm", "target_kl")
    ),
    *((TRPO, name) for name in ("learning_rate", "target_kl", "cg_damping")),
]


@pytest.mark.parametrize(("cls", "name"), SCHEDULED, ids=lambda x: getattr(x, "__name__", x))
@pytest.mark.parametrize("late", [False, True], ids=["at the start", "later"])
def test_nonsense_of_a_schedule_is_refused_by_name_when_it_is_used(cls: type[Any], name: str, late: bool, env: VecEnv) -> None:
    """NaN at the start of training, or in the middle of it; SB3 goes on with it, and its parameters become NaN."""
    with pytest.raises(ValueError, match=rf"\b{name.replace('_', '.')}\b"):  # torch's own: "Invalid learning rate: nan"
        schedule = lambda progress: 1e-3 if late and progress > 0.4 else NAN  # noqa: E731
        cls("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu", **{name: schedule}).learn(96)


@pytest.mark.parametrize("name", ["learning_rate", "clip_range", "vf_coef", "max_grad_norm"])
def test_a_negative_value_of_a_schedule_is_refused_by_name(name: str, env: VecEnv) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b.* at least 0"):
        schedule: dict[str, Any] = {name: lambda progress: progress - 0.5}
        PPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu", **schedule).learn(96)


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 1},
        {"learning_rate": "lin_3e-4"},
        {"learning_rate": lambda progress: 1e-3 * progress},
        {"learning_rate": FloatSchedule(1e-3)},
        {"gamma": 0, "gae_lambda": 1},
        {"gamma": 1.0, "gae_lambda": 0.0},
        {"target_kl": "lin_0.05"},
        {"sde_sample_freq": 4, "use_sde": True},
        {"micro_batch_size": 16},
    ],
    ids=lambda arguments: "callable" if any(map(inspect.isfunction, arguments.values())) else str(arguments),
)
def test_sense_is_accepted(cls: type[Any], arguments: dict[str, Any], env: VecEnv) -> None:
    cls("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu", **arguments)


@pytest.mark.parametrize(
    "arguments", [{"max_grad_norm": math.inf}, {"ent_coef": 0}, {"clip_range_vf": None}, {"target_kl": None}], ids=str
)
def test_sense_is_accepted_by_ppo(arguments: dict[str, Any], env: VecEnv) -> None:
    PPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu", **arguments)


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_truncated_minibatch_warns_with_the_numbers(cls: type[Any], env: VecEnv) -> None:
    with pytest.warns(UserWarning, match=r"mini-batch size of 24[\s\S]*= 32[\s\S]*truncated mini-batch of size 8"):
        cls("MlpPolicy", env, n_steps=16, batch_size=24, device="cpu")


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_rollout_of_one_transition_cannot_be_normalised(cls: type[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="n_steps"):
            cls("MlpPolicy", toy(n_envs=1), n_steps=1, device="cpu")
        cls("MlpPolicy", toy(n_envs=1), n_steps=1, normalize_advantage=False, device="cpu")


def test_a_minibatch_of_one_transition_cannot_be_normalised(env: VecEnv) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        PPO("MlpPolicy", env, batch_size=1, device="cpu")


def test_the_closed_form_says_what_it_cannot_do(env: VecEnv) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"use_sde": True}, "StateDependentNoise"),
        ({"policy_kwargs": {"activation_fn": th.nn.GELU}}, "GELU"),
    ]
    for arguments, reason in cases:
        model = PPO("MlpPolicy", env, engine="closed_form", n_steps=16, batch_size=32, device="cpu", **arguments)
        with pytest.raises(ValueError, match=rf"engine.*{reason}.*engine=\"auto\""):
            model.learn(32)

"""Nonsense is refused at construction, with the argument's name in the message."""

import inspect
import math
import warnings

import pytest
from stable_baselines3.common.utils import FloatSchedule
from toy_environments import toy

from sb3_policyopt import PPO, TRPO

NAN = math.nan
COUNTS = [0, -1, 1.5, "8", None, True, NAN]
NUMBERS = [-0.1, NAN, math.inf, "nonsense", [0.1], True]
POSITIVE = [0, 0.0, *NUMBERS]
SCHEDULES = ["lin_x", "lin_", "lin_-0.1", "lin_nan", "exp_0.1", "0.1", lambda progress: NAN, lambda progress: -1.0]
FRACTIONS = [-0.01, 1.01, NAN, "0.9", None]
SHARED = {
    "learning_rate": [*POSITIVE, *SCHEDULES, None],
    "n_steps": COUNTS,
    "batch_size": COUNTS,
    "gamma": FRACTIONS,
    "gae_lambda": FRACTIONS,
    "normalize_advantage": [1, "yes", None],
    "check_observations": [1, "no", None],
    "value_target": ["td", "TD_LAMBDA", None, 1, ["td_zero"]],
    "engine": ["numpy", None, 1],
    "micro_batch_size": [0, -4, 2.5, "8", True],
    "stats_window_size": [0, -1, 1.5, None],
    "sde_sample_freq": [-2, 1.5, "4"],
    "target_kl": [*POSITIVE, *SCHEDULES],
}
TABLES = {
    PPO: {
        **SHARED,
        "n_epochs": COUNTS,
        "clip_range": [*POSITIVE, *SCHEDULES, None],
        "clip_range_vf": [*POSITIVE, *SCHEDULES],
        "ent_coef": [*NUMBERS, *SCHEDULES, None],
        "vf_coef": [*NUMBERS, *SCHEDULES, None],
        "max_grad_norm": [0.0, -1, NAN, "lin_x", None],
        "value_clipping": ["max", None, 1],
        "kl_stop": ["never", None, 1],
    },
    TRPO: {
        **SHARED,
        "target_kl": [*POSITIVE, *SCHEDULES, None],
        "cg_damping": [*NUMBERS, *SCHEDULES, None],
        "cg_max_steps": COUNTS,
        "line_search_shrinking_factor": [0, 1, 1.5, -0.5, NAN, "0.8", None],
        "line_search_max_iter": COUNTS,
        "n_critic_updates": COUNTS,
        "sub_sampling_factor": COUNTS,
        "kl_reduction": ["max", None, 1],
        "line_search": [1, "no", None],
    },
}
CASES = [(cls, name, value) for cls, table in TABLES.items() for name, values in table.items() for value in values]


@pytest.fixture(scope="module")
def env():
    return toy(n_envs=2)


@pytest.mark.parametrize(("cls", "name", "value"), CASES, ids=lambda x: getattr(x, "__name__", repr(x)))
def test_nonsense_is_refused_by_name(cls, name, value, env):
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        cls("MlpPolicy", env, **{name: value}, device="cpu", _init_setup_model=False)


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
def test_sense_is_accepted(cls, arguments, env):
    cls("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu", **arguments)


@pytest.mark.parametrize(
    "arguments", [{"max_grad_norm": math.inf}, {"ent_coef": 0}, {"clip_range_vf": None}, {"target_kl": None}], ids=str
)
def test_sense_is_accepted_by_ppo(arguments, env):
    PPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu", **arguments)


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_truncated_minibatch_warns_with_the_numbers(cls, env):
    with pytest.warns(UserWarning, match=r"mini-batch size of 24[\s\S]*= 32[\s\S]*truncated mini-batch of size 8"):
        cls("MlpPolicy", env, n_steps=16, batch_size=24, device="cpu")


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_rollout_of_one_transition_cannot_be_normalised(cls):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="n_steps"):
            cls("MlpPolicy", toy(n_envs=1), n_steps=1, device="cpu")
        cls("MlpPolicy", toy(n_envs=1), n_steps=1, normalize_advantage=False, device="cpu")


def test_a_minibatch_of_one_transition_cannot_be_normalised(env):
    with pytest.raises(ValueError, match="batch_size"):
        PPO("MlpPolicy", env, batch_size=1, device="cpu")


def test_the_closed_form_says_what_it_cannot_do(env):
    for arguments, reason in [
        ({"use_sde": True}, "StateDependentNoise"),
        ({"micro_batch_size": 8}, "micro_batch_size"),
    ]:
        model = PPO("MlpPolicy", env, engine="closed_form", n_steps=16, batch_size=32, device="cpu", **arguments)
        with pytest.raises(ValueError, match=rf"engine.*{reason}.*engine=\"auto\""):
            model.learn(32)

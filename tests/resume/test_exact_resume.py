"""A run that was ended and resumed has the bits of the undisturbed one, wherever environments and policies hold state."""

import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from resume_scenarios import FASTEST, Crash, CrashAt
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_policyopt import PPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.envs import SharedMemoryVecEnv
from sb3_policyopt.errors import StateNotKeptError
from sb3_policyopt.saving.environments import VecEnvState

STEPS, SAVE_FREQ, CRASH = 128, 64, 100


class Walk(gym.Env[Any, Any]):
    """A random walk; ``second`` is the part of the observation by which a lost state shows in the training."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.normal()), 0
        self.begin()
        return self.observation(), {}

    def step(self, action: Any) -> Any:
        self.x += 0.1 * (2 * action - 1) + 0.05 * float(self.np_random.normal())
        self.t += 1
        self.tick()
        return self.observation(), -abs(self.x), False, self.t >= 40, {}

    def observation(self) -> Any:
        return np.array([self.x, self.second()], np.float32)

    def begin(self) -> None:
        pass

    def tick(self) -> None:
        pass

    def second(self) -> float:
        return 0.0


class Clock(Walk):
    clock = 0

    def tick(self) -> None:
        self.clock += 1

    def second(self) -> float:
        return float(np.sin(self.clock / 10))


class Window(Walk):
    def begin(self) -> None:
        self.window = deque([self.x] * 5, 5)

    def tick(self) -> None:
        self.window.append(self.x)

    def second(self) -> float:
        return float(np.mean(self.window))


class Phase(Walk):
    def begin(self) -> None:
        self.phase = self.one

    def tick(self) -> None:
        if self.t == 21:
            self.phase = self.two

    def one(self) -> float:
        return 1.0

    def two(self) -> float:
        return -1.0

    def second(self) -> float:
        return self.phase()


class Deleted(Walk):
    def begin(self) -> None:
        self.fresh = True

    def tick(self) -> None:
        if self.t == 3:
            del self.fresh

    def second(self) -> float:
        return float(hasattr(self, "fresh"))


class Slots(Walk):
    __slots__ = ("speed",)

    def begin(self) -> None:
        self.speed = 0.0

    def tick(self) -> None:
        self.speed += 0.1

    def second(self) -> float:
        return self.speed


class Planner(Walk):
    """What its methods copy is enough for planning, but not all of its state."""

    def get_state(self) -> float:
        return self.x

    def set_state(self, x: float) -> None:
        self.x, self.t = x, 0

    def second(self) -> float:
        return self.t / 40


class Shared(Walk):
    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def second(self) -> float:
        return float(self.generator.normal())


class SelfPlay(Walk):
    opponent: Any = None

    def second(self) -> float:
        if self.opponent is None:
            return 0.0
        with th.no_grad():
            return float(getattr(self.opponent, "policy", self.opponent).predict_values(th.tensor([[self.x, 0.0]])))


class Careless(Walk):
    """Draws from NumPy's global generator."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            np.random.seed(seed)
        return super().reset(seed=seed)

    def second(self) -> float:
        return float(np.random.normal())


class Counting(DummyVecEnv):
    """A VecEnv with state of its own."""

    angle = 0.0

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = super().step_wait()
        self.angle += 0.01
        assert isinstance(observations, np.ndarray)
        observations[:, 1] = np.sin(self.angle)
        return observations, rewards, dones, infos


class Scaling(RolloutBuffer):
    """Divides rewards by a running scale."""

    scale = 1.0

    def compute_returns_and_advantage(self, last_values: Any, dones: Any) -> None:
        self.scale = 0.9 * self.scale + 0.1 * float(np.abs(self.rewards).max())
        self.rewards /= self.scale
        super().compute_returns_and_advantage(last_values, dones)


class Annealed(ActorCriticPolicy):
    """A number, a buffer that its ``state_dict`` leaves out, and an optimizer that training changes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.beta = 1.0
        self.register_buffer("scale", th.ones(()), persistent=False)
        self.auxiliary = th.optim.Adam(self.value_net.parameters(), lr=1e-3)

    def evaluate_actions(self, *arguments: Any) -> Any:
        values, log_probs, entropy = super().evaluate_actions(*arguments)
        assert entropy is not None and isinstance(self.scale, th.Tensor)
        self.beta *= 0.9
        with th.no_grad():
            self.scale *= 0.95
        return values * self.scale, log_probs, entropy * self.beta


class Auxiliary(PPO):
    """Steps a second optimizer of the policy."""

    def train(self) -> None:
        super().train()
        assert isinstance(self.policy, Annealed)
        observations = th.as_tensor(self.rollout_buffer.observations.reshape(-1, 2))
        self.policy.auxiliary.zero_grad()
        th.autograd.backward(self.policy.predict_values(observations).pow(2).mean())
        self.policy.auxiliary.step()


class Once(BaseCallback):
    """Does something to the model once, before the checkpoint from which the run is resumed."""

    def __init__(self, does: Callable[[Any], object]) -> None:
        super().__init__()
        self.does = does

    def _on_step(self) -> bool:
        if self.num_timesteps == 32:
            self.does(self.model)
        return True


def train(
    folder: Path, env: VecEnv, prepare: Callable[[Any], object], others: list[BaseCallback], cls: Any = PPO, **options: Any
) -> PPO:
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, "ent_coef": 0.01, "device": "cpu", **options}
    model: PPO = cls(settings.pop("policy", "MlpPolicy"), env, **settings)
    prepare(model)
    try:
        return model.learn(STEPS, callback=[ResumableCheckpointCallback(folder, SAVE_FREQ), *others])
    finally:
        env.close()


def assert_exact(
    folder: Path,
    make: Callable[[], VecEnv],
    prepare: Callable[[Any], object] = lambda model: None,
    does: Callable[[Any], object] = lambda model: None,
    **options: Any,
) -> PPO:
    """The undisturbed run and the resumed one end with the same bits, without a warning; returns the resumed model."""

    def run(name: str, crash_at: float) -> PPO:
        return train(folder / name, make(), prepare, [Once(does), CrashAt(crash_at)], **options)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        whole = run("whole", np.inf)
        with pytest.raises(Crash):
            run("parts", CRASH)
        resumed = run("parts", np.inf)
    for name, value in whole.policy.state_dict().items():
        assert th.equal(value, resumed.policy.state_dict()[name]), name
    return resumed


def two(cls: type[gym.Env[Any, Any]], venv: type[VecEnv] = DummyVecEnv) -> Callable[[], VecEnv]:
    how = {} if issubclass(venv, DummyVecEnv) else {"start_method": FASTEST}
    return lambda: venv([cls, cls], **how)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("cls", [Clock, Window, Phase, Deleted, Slots, Planner])
def test_every_attribute_of_an_environment_is_state(tmp_path: Path, cls: type[Walk]) -> None:
    assert_exact(tmp_path, two(cls))


def test_an_object_of_several_environments_stays_one(tmp_path: Path) -> None:
    def make() -> VecEnv:
        generator = np.random.default_rng(3)
        return DummyVecEnv([lambda: Shared(generator), lambda: Shared(generator)])

    first, second = assert_exact(tmp_path, make).get_env().get_attr("generator")  # type: ignore[union-attr]
    assert first is second


def test_an_object_of_two_vecenvs_stays_one(tmp_path: Path) -> None:
    generators = []

    def run(name: str, crash_at: float) -> PPO:
        generator = np.random.default_rng(3)
        env, evaluation = DummyVecEnv([lambda: Shared(generator)]), DummyVecEnv([lambda: Shared(generator)])
        evaluates = EvalCallback(evaluation, n_eval_episodes=1, eval_freq=30, verbose=0, warn=False)
        model = train(tmp_path / name, env, lambda model: None, [evaluates, CrashAt(crash_at)])
        generators.append((generator.random(), env.get_attr("generator")[0] is evaluation.get_attr("generator")[0]))
        return model

    whole = run("whole", np.inf)
    with pytest.raises(Crash):
        run("parts", CRASH)
    resumed = run("parts", np.inf)
    assert generators[0] == generators[1] and generators[1][1]
    assert str(whole.policy.state_dict()) == str(resumed.policy.state_dict())


@pytest.mark.parametrize("of_model", [lambda model: model, lambda model: model.policy], ids=["model", "policy"])
def test_an_environment_plays_against_the_policy_in_training(tmp_path: Path, of_model: Callable[[Any], Any]) -> None:
    def prepare(model: Any) -> None:
        model.env.set_attr("opponent", of_model(model))

    resumed = assert_exact(tmp_path, two(SelfPlay), prepare)
    assert resumed.env is not None and resumed.env.get_attr("opponent") == [of_model(resumed)] * 2


def test_a_policy_in_shared_memory_is_not_kept_in_a_worker() -> None:
    """What is sent to a worker changes with the original; a copy in a checkpoint would not."""
    venv, net = SubprocVecEnv([SelfPlay], start_method=FASTEST), th.nn.Linear(2, 2)
    venv.reset()
    venv.set_attr("opponent", net)
    shared: Any = net.weight
    assert shared.is_shared()
    with pytest.raises(StateNotKeptError, match=r"SelfPlay\.opponent \(Linear\) .* memory that another process shares"):
        VecEnvState(venv).capture()
    venv.close()


@pytest.mark.parametrize("venv", [DummyVecEnv, SubprocVecEnv, SharedMemoryVecEnv])
def test_global_generators_go_on_in_every_process(tmp_path: Path, venv: type[VecEnv]) -> None:
    assert_exact(tmp_path, two(Careless, venv))


def test_what_a_policy_holds_beside_its_parameters_is_kept(tmp_path: Path) -> None:
    resumed = assert_exact(tmp_path, two(Walk), cls=Auxiliary, policy=Annealed)
    assert isinstance(resumed.policy, Annealed)
    assert resumed.policy.beta == pytest.approx(0.9 ** (STEPS / 16))


def test_frozen_parameters_stay_frozen(tmp_path: Path) -> None:
    resumed = assert_exact(tmp_path, two(Walk), does=lambda model: model.policy.mlp_extractor.requires_grad_(False))
    assert not any(parameter.requires_grad for parameter in resumed.policy.mlp_extractor.parameters())
    assert resumed.policy.action_net.weight.requires_grad


def replace_activation(model: Any) -> None:
    model.policy.mlp_extractor.policy_net[1] = th.nn.ReLU()


@pytest.mark.parametrize(
    ("does", "text"),
    [
        (replace_activation, r"modules that were replaced: policy\.mlp_extractor\.policy_net\.1\. They cannot be kept"),
        (lambda m: m.policy.value_net.register_forward_hook(print), r"hooks that have changed at: policy\.value_net\. They"),
    ],
)
def test_other_modules_and_hooks_are_named(tmp_path: Path, does: Callable[[Any], object], text: str) -> None:
    with pytest.warns(UserWarning, match=text) as told:
        train(tmp_path, two(Walk)(), lambda model: None, [Once(does)])
    assert len(told) == 1


@pytest.mark.parametrize("what", ["rollout buffer", "VecEnv"])
def test_classes_of_the_script_have_state_of_their_own(tmp_path: Path, what: str) -> None:
    if what == "VecEnv":
        assert_exact(tmp_path, two(Walk, Counting))
    else:
        assert_exact(tmp_path, two(Walk), rollout_buffer_class=Scaling)


def test_a_model_that_has_been_trained_does_not_continue_its_own_run(tmp_path: Path) -> None:
    """A checkpoint holds what has changed since the start of learn, which this model is past."""
    model = PPO("MlpPolicy", two(Walk)(), n_steps=16, batch_size=16, n_epochs=1, seed=0)
    with pytest.raises(Crash):
        model.learn(STEPS, callback=[ResumableCheckpointCallback(tmp_path, SAVE_FREQ), CrashAt(CRASH)])
    with pytest.raises(ValueError, match=r"has seen 3 updates .* the run had seen 0.* Make the model, .* anew, as the script"):
        model.learn(STEPS, callback=ResumableCheckpointCallback(tmp_path, SAVE_FREQ))

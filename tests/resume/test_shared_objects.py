"""Resumed runs in which objects refer to each other, or something of the script has another place, order or number."""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from resume_scenarios import Crash, CrashAt
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from sb3_policyopt import PPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback

STEPS, ROLLOUT = 256, 32


class Callback(BaseCallback):
    def _on_step(self) -> bool:
        return True


def learn(folder: Path, env: Any, others: list[BaseCallback], *, first: bool = True, **options: Any) -> PPO:
    settings: dict[str, Any] = {
        "n_steps": ROLLOUT,
        "batch_size": ROLLOUT,
        "n_epochs": 1,
        "device": "cpu",
        "seed": 0,
        **options,
    }
    saves = ResumableCheckpointCallback(folder, save_freq=64)
    model = PPO("MlpPolicy", env, **settings)
    return model.learn(STEPS, callback=[saves, *others] if first else [*others, saves])


def whole_and_resumed(
    folder: Path, script: Callable[[], tuple[Any, list[BaseCallback]]], **options: Any
) -> Iterator[tuple[PPO, list[BaseCallback]]]:
    """
    The models and callbacks of an undisturbed run and of one that crashed in the middle of a rollout and was resumed.

    :param folder: for the checkpoints
    :param script: makes environment and callbacks as a script does
    """
    env, others = script()
    yield learn(folder / "whole", env, [*others, CrashAt(np.inf)], **options), others
    env, others = script()
    with pytest.raises(Crash):
        learn(folder / "parts", env, [*others, CrashAt(STEPS / 2 + 5)], **options)
    env, others = script()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield learn(folder / "parts", env, [*others, CrashAt(np.inf)], **options), others


def parameters(model: PPO) -> list[float]:
    return [number for parameter in model.policy.parameters() for number in parameter.flatten().tolist()]


class Multiplier(Callback):
    """A Lagrange multiplier with an optimizer of its own, whose value is a coefficient of the training."""

    def __init__(self) -> None:
        super().__init__()
        self.log = th.nn.Parameter(th.zeros(()))
        self.optimizer = th.optim.Adam([self.log], lr=0.1)

    def _on_rollout_end(self) -> None:
        self.optimizer.zero_grad()
        th.autograd.backward(-self.log)
        self.optimizer.step()
        self.model.ent_coef = 0.01 * self.log.detach().exp().item()  # type: ignore[attr-defined]


def test_an_optimizer_goes_on_stepping_the_parameter_of_its_callback(tmp_path: Path) -> None:
    (whole, (before,)), (resumed, (after,)) = whole_and_resumed(tmp_path, lambda: ("Pendulum-v1", [Multiplier()]))
    assert isinstance(before, Multiplier) and isinstance(after, Multiplier)
    assert before.log.item() == after.log.item() > 0.7  # eight steps of 0.1
    assert parameters(whole) == parameters(resumed)


class Distilled:
    """A network, its optimizer and a count in a plain object."""

    def __init__(self) -> None:
        self.net, self.count = th.nn.Linear(2, 1), 0
        self.optimizer = th.optim.Adam(self.net.parameters())


class Networks(Callback):
    """Networks in a list, in a dictionary, in an object, and one that is replaced by a copy now and then."""

    def __init__(self) -> None:
        super().__init__()
        with th.random.fork_rng():
            th.manual_seed(0)
            self.ensemble, self.by_name = [th.nn.Linear(2, 1) for _ in range(2)], {"a": th.nn.Linear(2, 1)}
            self.distilled = Distilled()
        self.target = copy.deepcopy(self.ensemble[0])

    def nets(self) -> list[th.nn.Linear]:
        return [*self.ensemble, self.by_name["a"], self.distilled.net]

    def _on_rollout_end(self) -> None:
        self.target = copy.deepcopy(self.ensemble[0])
        self.distilled.count += 1
        for net in self.nets():
            net.zero_grad()
            th.autograd.backward(net(th.ones(1, 2)).sum())
            with th.no_grad():
                net.weight -= 0.1
        self.distilled.optimizer.step()


def test_networks_in_containers_and_objects_go_on(tmp_path: Path) -> None:
    (_, (before,)), (_, (after,)) = whole_and_resumed(tmp_path, lambda: ("Pendulum-v1", [Networks()]))
    assert isinstance(before, Networks) and isinstance(after, Networks)
    for one, other in zip([*before.nets(), before.target], [*after.nets(), after.target], strict=True):
        assert th.equal(one.weight, other.weight)
    assert before.distilled.count == after.distilled.count == STEPS / ROLLOUT


class Curriculum:
    level = 0

    def __init__(self) -> None:
        self.history: list[int] = []


class Scaled(gym.RewardWrapper[Any, Any]):
    def __init__(self, env: Any, curriculum: Curriculum) -> None:
        super().__init__(env)
        self.curriculum = curriculum

    def reward(self, reward: Any) -> float:
        return float(reward) * (1 + self.curriculum.level)


class Raises(Callback):
    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__()
        self.curriculum = curriculum

    def _on_rollout_end(self) -> None:
        self.curriculum.level += 1
        self.curriculum.history.append(self.num_timesteps)


def test_an_object_of_a_callback_and_of_an_environment_stays_one(tmp_path: Path) -> None:
    def script() -> tuple[Any, list[BaseCallback]]:
        curriculum = Curriculum()
        return Scaled(gym.make("Pendulum-v1"), curriculum), [Raises(curriculum)]

    (whole, _), (resumed, (callback,)) = whole_and_resumed(tmp_path, script)
    assert isinstance(callback, Raises) and isinstance(resumed.env, VecEnv)
    (in_env,) = resumed.env.get_attr("curriculum")
    assert in_env is callback.curriculum
    assert in_env.level == STEPS / ROLLOUT and in_env.history == [*range(ROLLOUT, STEPS + 1, ROLLOUT)]
    assert parameters(whole) == parameters(resumed)


class Watches(Callback):
    def __init__(self, statistics: VecNormalize) -> None:
        super().__init__()
        self.statistics, self.seen = statistics, list[float]()

    def _on_rollout_end(self) -> None:
        assert isinstance(self.statistics.obs_rms, RunningMeanStd)
        self.seen.append(float(self.statistics.obs_rms.mean.sum()))


def test_statistics_that_two_wrappers_share_stay_shared(tmp_path: Path) -> None:
    def script() -> tuple[Any, list[BaseCallback]]:
        env = VecNormalize(make_vec_env("Pendulum-v1"))
        evaluation = VecNormalize(make_vec_env("Pendulum-v1"), training=False)
        evaluation.obs_rms = env.obs_rms
        return env, [Watches(evaluation)]

    (_, (before,)), (_, (after,)) = whole_and_resumed(tmp_path, script)
    assert isinstance(before, Watches) and isinstance(after, Watches)
    assert before.seen == after.seen and len(set(before.seen)) == STEPS / ROLLOUT


class Task:
    def __init__(self, weight: float) -> None:
        self.weight = weight


class Chooses(Callback):
    """Goes from one of several objects to the next: the attribute changes, the objects do not."""

    def __init__(self, tasks: list[Task]) -> None:
        super().__init__()
        self.task, self.number = tasks[0], 0

    def _on_rollout_end(self) -> None:
        self.number += 1
        self.task = TASKS[self.number % len(TASKS)]


TASKS = [Task(float(number)) for number in range(3)]


def test_an_object_that_another_has_replaced_is_not_overwritten(tmp_path: Path) -> None:
    (_, (before,)), (_, (after,)) = whole_and_resumed(tmp_path, lambda: ("Pendulum-v1", [Chooses(TASKS)]))
    assert isinstance(before, Chooses) and isinstance(after, Chooses)
    assert before.task.weight == after.task.weight == 2
    assert [task.weight for task in TASKS] == [0, 1, 2]


class NoisyObservations(VecEnvWrapper):
    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.generator = np.random.default_rng(0)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(observations, np.ndarray)
        return observations + self.generator.normal(0, 3, observations.shape).astype(np.float32), rewards, dones, infos


class Resets(Callback):
    """Has a Gymnasium environment that is not vectorised."""

    def __init__(self) -> None:
        super().__init__()
        self.env, self.seen = gym.make("InvertedPendulum-v5"), list[float]()
        self.env.reset(seed=0)

    def _on_rollout_end(self) -> None:
        self.seen.append(float(self.env.reset()[0].sum()))


def test_environments_of_callbacks_go_on_with_their_wrappers(tmp_path: Path) -> None:
    def script() -> tuple[Any, list[BaseCallback]]:
        env = NoisyObservations(make_vec_env("Pendulum-v1", seed=7))
        evaluation = EvalCallback(env, n_eval_episodes=1, eval_freq=32, verbose=0, deterministic=False)
        return NoisyObservations(make_vec_env("Pendulum-v1")), [evaluation, Resets()]

    (whole, (evaluated, reset)), (resumed, (evaluated_too, reset_too)) = whole_and_resumed(tmp_path, script)
    assert isinstance(evaluated, EvalCallback) and isinstance(evaluated_too, EvalCallback)
    assert isinstance(reset, Resets) and isinstance(reset_too, Resets)
    assert evaluated.last_mean_reward == evaluated_too.last_mean_reward
    assert reset.seen == reset_too.seen and len(set(reset.seen)) == STEPS / ROLLOUT
    assert parameters(whole) == parameters(resumed)


class Decays(Callback):
    """Acts where a checkpoint is made, too."""

    def _on_rollout_start(self) -> None:
        self.model.ent_coef *= 0.9  # type: ignore[attr-defined]


class BeginsAt0(Callback):
    """Sets something of the environments when it starts, and changes it later."""

    def _on_training_start(self) -> None:
        self.training_env.set_attr("g", 1.0)

    def _on_rollout_end(self) -> None:
        (g,) = self.training_env.get_attr("g")
        self.training_env.env_method("set_wrapper_attr", "g", g + 1)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [Decays, BeginsAt0])
def test_the_order_of_callbacks_does_not_matter(kind: type[BaseCallback], first: bool, tmp_path: Path) -> None:
    (whole, _), (resumed, _) = whole_and_resumed(tmp_path, lambda: ("Pendulum-v1", [kind()]), first=first, ent_coef=0.01)
    assert whole.ent_coef == resumed.ent_coef
    assert parameters(whole) == parameters(resumed)


def test_without_the_statistics_of_observations_a_run_is_not_continued(tmp_path: Path) -> None:
    learn(tmp_path, VecNormalize(make_vec_env("Pendulum-v1")), [])
    with pytest.raises(ValueError, match="its number of VecNormalize wrappers is 1, here it is 0"):
        learn(tmp_path, make_vec_env("Pendulum-v1"), [])


def test_statistics_are_found_whatever_is_around_them(tmp_path: Path) -> None:
    def normalized() -> VecNormalize:
        return VecNormalize(make_vec_env("Pendulum-v1", monitor_dir=None))

    before, after = normalized(), normalized()
    learn(tmp_path, before, [])
    with pytest.warns(UserWarning, match=r"with the wrappers \['VecNormalize 0'\] .* now there are \['VecMonitor 0'"):
        learn(tmp_path, VecMonitor(after), [])
    assert isinstance(after.obs_rms, RunningMeanStd) and isinstance(before.obs_rms, RunningMeanStd)
    assert after.obs_rms.count == before.obs_rms.count > STEPS


@pytest.mark.parametrize(("before", "after"), [("lin_0.01", "lin_0.02"), ("lin_0.01", 0.01), (0.01, "lin_0.02")])
def test_a_changed_schedule_takes_effect_and_is_named(before: Any, after: Any, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        learn(tmp_path, "Pendulum-v1", [CrashAt(STEPS / 2 + 5)], ent_coef=before)
    with pytest.warns(UserWarning, match="other hyperparameters: ent_coef"):
        resumed = learn(tmp_path, "Pendulum-v1", [], ent_coef=after)
    fresh = learn(tmp_path / "fresh", "Pendulum-v1", [], ent_coef=after)
    assert (resumed.ent_coef, [*resumed.schedules]) == (fresh.ent_coef, [*fresh.schedules])


def test_more_episodes_are_averaged_if_the_script_says_so(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        learn(tmp_path, "Pendulum-v1", [CrashAt(STEPS / 2 + 5)], stats_window_size=3)
    with pytest.warns(UserWarning, match="stats_window_size 7 here, 3 before"):
        resumed = learn(tmp_path, "Pendulum-v1", [], stats_window_size=7)
    assert resumed.ep_info_buffer is not None and resumed.ep_info_buffer.maxlen == 7


class Keeps(Callback):
    """Keeps a copy of the policy where nothing was at the start."""

    old: Any = None

    def _on_rollout_end(self) -> None:
        self.old = copy.deepcopy(self.model.policy)


def test_a_copy_of_the_policy_does_not_keep_a_run_from_being_continued(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Keeps.old cannot be kept"), pytest.raises(Crash):
        learn(tmp_path, "Pendulum-v1", [Keeps(), CrashAt(STEPS / 2 + 5)])
    with pytest.warns(UserWarning, match="Keeps.old cannot be kept"):
        assert learn(tmp_path, "Pendulum-v1", [Keeps()]).num_timesteps == STEPS


def test_a_progress_bar_does_not_disturb_an_evaluation(tmp_path: Path) -> None:
    def evaluation() -> EvalCallback:
        return EvalCallback(make_vec_env("Pendulum-v1"), n_eval_episodes=1, eval_freq=64, verbose=0, warn=False)

    def run(callback: EvalCallback, *others: BaseCallback, progress_bar: bool) -> None:
        model = PPO("MlpPolicy", "Pendulum-v1", n_steps=ROLLOUT, batch_size=ROLLOUT, n_epochs=1, device="cpu", seed=0)
        saves = ResumableCheckpointCallback(tmp_path, save_freq=64)
        model.learn(STEPS, callback=[saves, callback, *others], progress_bar=progress_bar)

    before, after = evaluation(), evaluation()
    with pytest.raises(Crash):
        run(before, CrashAt(STEPS / 2 + 5), progress_bar=False)
    with pytest.warns(UserWarning, match=r"\[\] are new and start afresh, \['CrashAt 0'\] are no more"):
        run(after, progress_bar=True)
    assert after.n_calls == STEPS
    assert after.best_mean_reward >= before.best_mean_reward


class HasGetState(InvertedPendulumEnv):
    """Gymnasium's ``set_state`` takes positions and velocities."""

    def get_state(self) -> Any:
        return np.concatenate([self.data.qpos, self.data.qvel])


def test_a_method_that_happens_to_be_called_set_state_is_not_used(tmp_path: Path) -> None:
    (whole, _), (resumed, _) = whole_and_resumed(tmp_path, lambda: (HasGetState(), []))
    assert parameters(whole) == parameters(resumed)


def test_models_of_sb3_with_the_same_name_are_left_alone(tmp_path: Path) -> None:
    class Remembers(CheckpointCallback):
        parameters_of_64: list[float]

        def _on_step(self) -> bool:
            if self.num_timesteps == 64:
                assert isinstance(self.model, PPO)
                self.parameters_of_64 = parameters(self.model)
            return super()._on_step()

    def script() -> tuple[Any, list[BaseCallback]]:
        return "Pendulum-v1", [Remembers(64, str(folder))]

    folder = tmp_path / "whole"
    (whole, (callback,)), *_ = runs = [*whole_and_resumed(tmp_path, script)]
    assert isinstance(callback, Remembers)
    assert parameters(PPO.load(folder / "rl_model_64_steps.zip")) == callback.parameters_of_64
    assert parameters(whole) == parameters(runs[1][0])
    assert (folder / f"rl_model_{STEPS}_steps.resumable.zip").is_file()


def test_a_callback_that_would_save_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give it to learn as it is, not to a callback such as EveryNTimesteps"):
        learn(tmp_path / "other", "Pendulum-v1", [EveryNTimesteps(64, ResumableCheckpointCallback(tmp_path, 64))])


def test_a_callback_is_for_one_call_of_learn(tmp_path: Path) -> None:
    model, saves = PPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32), ResumableCheckpointCallback(tmp_path, 64)
    model.learn(64, callback=saves)
    with pytest.raises(ValueError, match="is for one call of learn: make another"):
        model.learn(64, callback=saves)

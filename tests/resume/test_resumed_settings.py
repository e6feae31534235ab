"""Resuming with another seed, other hyperparameters, things that other callbacks and wrappers hold, and foreign files."""

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from sb3_policyopt import PPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.recording import RunRecorder
from sb3_policyopt.zoo.experiment import without_resuming
from sb3_policyopt.zoo.torchrun import given_seed


def train(
    folder: Path, steps: int = 128, *, env: Any = "Pendulum-v1", others: Any = (), any_seed: bool = False, **options: Any
) -> PPO:
    settings: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "device": "cpu", "seed": 0, **options}
    checkpoints = ResumableCheckpointCallback(folder, save_freq=64)
    checkpoints.any_seed = any_seed
    return PPO("MlpPolicy", env, **settings).learn(steps, callback=[checkpoints, *others])


def test_the_same_script_resumes_without_a_word(tmp_path: Path) -> None:
    options: dict[str, Any] = {"ent_coef": "lin_0.01", "learning_rate": lambda progress: 1e-3 * progress}
    train(tmp_path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path, **options)


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ValueError, match=r"its seed is 0, here it is 1\. Choose another folder"):
        train(tmp_path, seed=1)


@pytest.mark.parametrize("options", [{"seed": None}, {"seed": 5, "any_seed": True}], ids=["none", "drawn by rl-zoo3"])
def test_a_script_without_a_seed_takes_that_of_the_run(tmp_path: Path, options: Any) -> None:
    before = train(tmp_path, seed=3)
    after = train(tmp_path, **options)
    assert after.seed == 3
    assert str(after.policy.state_dict()) == str(before.policy.state_dict())


def test_changed_hyperparameters_take_effect_and_are_named(tmp_path: Path) -> None:
    """The coefficient of a schedule that came near 0, and an option of the optimizer, which its state holds."""
    train(tmp_path, ent_coef="lin_0.01", policy_kwargs={"optimizer_kwargs": {"weight_decay": 0.01}})
    options: dict[str, Any] = {"ent_coef": 0.005, "policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.5}}}
    with pytest.warns(UserWarning) as told:
        model = train(tmp_path, 256, **options)
    (text,) = [str(warning.message) for warning in told if "other hyperparameters" in str(warning.message)]
    assert "ent_coef 0.005 here" in text and "policy_kwargs" in text and "Training goes on with those of here" in text
    assert model.ent_coef == 0.005
    assert model.policy.optimizer.param_groups[0]["weight_decay"] == 0.5


def test_of_a_complete_training_changed_hyperparameters_have_no_effect(tmp_path: Path) -> None:
    before = train(tmp_path)
    with pytest.warns(UserWarning, match="gamma 0.5 here, 0.99 before.*have no effect, as the training is complete"):
        after = train(tmp_path, gamma=0.5)
    assert str(after.policy.state_dict()) == str(before.policy.state_dict())


def test_a_new_run_folder_gets_a_best_model(tmp_path: Path) -> None:
    """rl-zoo3 makes one for each call of ``train``; there the best reward so far has no model."""

    def evaluated(name: str) -> EvalCallback:
        env = DummyVecEnv([lambda: gym.make("Pendulum-v1")])
        return EvalCallback(
            env, n_eval_episodes=1, eval_freq=64, best_model_save_path=str(tmp_path / name), warn=False, verbose=0
        )

    class Perfect(BaseCallback):
        """Sets the best reward once to 0, which Pendulum's returns do not reach."""

        def __init__(self, evaluation: EvalCallback) -> None:
            super().__init__()
            self.evaluation, self.is_done = evaluation, False

        def _on_step(self) -> bool:
            if self.num_timesteps > 64 and not self.is_done:
                self.evaluation.best_mean_reward, self.is_done = 0.0, True
            return True

    def run(name: str, steps: int) -> None:
        evaluation = evaluated(name)
        train(tmp_path / "checkpoints", steps, others=[evaluation, Perfect(evaluation)])

    run("one", 128)
    with pytest.warns(UserWarning, match="schedules follow the new end"):
        run("two", 256)
    assert (tmp_path / "two" / "best_model.zip").is_file()


class Curious(VecEnvWrapper):
    """A wrapper that learns: its network is trained in every step."""

    def __init__(self) -> None:
        super().__init__(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
        with th.random.fork_rng():
            th.manual_seed(0)
            self.net = th.nn.Linear(3, 1)
        self.optimizer = th.optim.Adam(self.net.parameters(), lr=0.01)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.optimizer.zero_grad()
        self.net(th.as_tensor(observations)).square().mean().backward()
        self.optimizer.step()
        return observations, rewards, dones, infos


def test_networks_of_a_wrapper_go_on_in_place(tmp_path: Path) -> None:
    whole, resumed = Curious(), Curious()
    train(tmp_path / "whole", 256, env=whole)
    train(tmp_path / "parts", 128, env=Curious())
    with pytest.warns(UserWarning, match="schedules follow the new end"):
        train(tmp_path / "parts", 256, env=resumed)
    assert th.equal(whole.net.weight, resumed.net.weight)
    assert resumed.optimizer.param_groups[0]["params"][0] is resumed.net.weight
    assert [state["step"] for state in resumed.optimizer.state.values()] == [256, 256]


class Late(BaseCallback):
    """Makes its network in its first step, after the script."""

    def _on_step(self) -> bool:
        if not hasattr(self, "net"):
            self.net = th.nn.Linear(1, 1)
        return True


def test_a_network_that_was_made_during_the_training_is_named_by_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"Late\.net cannot be kept .* network that was made during the training"):
        train(tmp_path, others=[Late()])
    train(tmp_path, others=[Late()])


def test_arguments_without_a_form_in_json_are_not_compared(tmp_path: Path) -> None:
    class Extractor(FlattenExtractor):
        def __init__(self, space: Any, table: Any) -> None:
            super().__init__(space)

    kwargs: dict[str, Any] = {"features_extractor_class": Extractor, "features_extractor_kwargs": {"table": {(1, 2): 3}}}
    train(tmp_path, policy_kwargs=kwargs)
    train(tmp_path, policy_kwargs=kwargs)


class Counting(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = defaultdict(lambda: 0)
        self.unused: dict[str, Any] = {"function": lambda: 0}
        self.functions: list[Any] = []

    def _on_step(self) -> bool:
        self.counts["steps"] += 1
        self.functions.append(lambda: 0)
        return True


def test_what_gathers_data_and_cannot_be_kept_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning) as told:
        train(tmp_path, others=[Counting()])
    (text,) = [str(warning.message) for warning in told if issubclass(warning.category, UserWarning)]
    assert text.startswith("Counting.functions cannot be kept in a checkpoint")
    resumed = Counting()
    train(tmp_path, others=[resumed])
    assert resumed.counts["steps"] == 128 and resumed.counts["nothing"] == 0  # the script's own function


def test_models_of_another_callback_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    train(tmp_path, others=[CheckpointCallback(16, str(tmp_path))])
    there = {f"rl_model_{steps}_steps.zip" for steps in range(16, 129, 16)}
    there |= {f"rl_model_{steps}_steps.resumable.zip" for steps in (64, 128)}
    assert {path.name for path in tmp_path.iterdir()} == there
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path, others=[CheckpointCallback(16, str(tmp_path))])
    assert {path.name for path in tmp_path.iterdir()} == there


@pytest.mark.parametrize("names", [("a", "b")])
def test_files_of_one_name_in_two_folders_are_both_continued(tmp_path: Path, names: tuple[str, str]) -> None:
    def run(steps: int) -> None:
        model = PPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, n_epochs=1, device="cpu", seed=0)
        model.set_logger(configure(str(tmp_path / names[0]), ["csv"]))
        callbacks = [RunRecorder(tmp_path / names[1]), ResumableCheckpointCallback(tmp_path / "checkpoints", save_freq=64)]
        model.learn(steps, callback=callbacks)

    run(128)
    with pytest.warns(UserWarning, match="schedules follow the new end"):
        run(256)
    for name in names:
        lines = (tmp_path / name / "progress.csv").read_text().splitlines()
        assert len(lines) == 9, name  # a header and eight rollouts


def test_one_file_under_two_spellings_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, n_epochs=1, device="cpu", seed=0)
    model.set_logger(configure("./run", ["csv"]))
    model.learn(64, callback=RunRecorder("run"))
    table = np.genfromtxt(tmp_path / "run" / "progress.csv", delimiter=",", names=True)
    assert list(table["timetotal_timesteps"]) == [32, 64]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["--algo", "ppo"], None), (["--seed", "3"], 3), (["--seed=0"], 0), (["--seed", "-1", "--env", "x"], None)],
)
def test_whether_the_command_line_has_a_seed(argv: list[str], expected: int | None) -> None:
    assert given_seed(argv) == expected


def test_a_search_continues_no_trial() -> None:
    name = "sb3_policyopt.callbacks.ResumableCheckpointCallback"
    other = {"stable_baselines3.common.callbacks.CheckpointCallback": {"save_freq": 3, "save_path": "x"}}
    assert without_resuming([other, {name: {"path": "x", "save_freq": 3}}, name]) == [other]
    assert without_resuming(name) == [] and without_resuming({name: {}}) == []
    assert without_resuming(other) == [other] and without_resuming([]) == []

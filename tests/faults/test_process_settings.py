"""What belongs to the whole process: torch's modes, NumPy's threads and its floating-point errors, with several trainings."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch.distributions import Distribution, Normal

import sb3_policyopt.envs  # noqa: F401  registers MaskedRoute-v0
from sb3_policyopt import PPO, TRPO, MaskablePPO, RecurrentPPO
from sb3_policyopt.global_state import ProcessSetting, blas_thread_functions

ALGORITHMS = [PPO, TRPO]


class InLoss(PPO):
    """Calls ``inside`` where torch's checks of distributions are off."""

    inside: Callable[[], None]

    def loss(self, batch: Any, coefficients: Any) -> Any:
        self.inside()
        return super().loss(batch, coefficients)


class InUpdate(PPO):
    """Calls ``inside`` where NumPy has one thread."""

    inside: Callable[[], None]

    def ends_update(self, epoch: Any) -> bool:
        self.inside()
        return super().ends_update(epoch)


@pytest.mark.parametrize("algorithm", [InLoss, InUpdate])
def test_two_trainings_that_overlap_leave_the_process_as_it_was(algorithm: Any) -> None:
    """The second one took for the process's own setting what the first had set for the moment, and left it behind."""
    get_threads, set_threads = blas_thread_functions() or (lambda: 1, lambda n: None)
    n_threads = get_threads()
    first = algorithm("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=32, n_epochs=1, device="cpu")
    second = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=32, n_epochs=1, device="cpu")
    has_begun, first_is_over = threading.Event(), threading.Event()

    class Overlap(BaseCallback):
        def _on_training_start(self) -> None:
            has_begun.set()

        def _on_step(self) -> bool:
            return self.n_calls < 64 or first_is_over.wait(60)

    other = threading.Thread(target=lambda: second.learn(64, callback=Overlap()))

    def begin_the_other() -> None:
        if not has_begun.is_set():
            other.start()
            assert has_begun.wait(60)

    first.inside = begin_the_other
    set_threads(2)
    try:
        first.learn(64)
        first_is_over.set()
        other.join()
        assert get_threads() == (2 if blas_thread_functions() else 1)
    finally:
        set_threads(n_threads)
    assert Distribution._validate_args
    with pytest.raises(ValueError):
        Normal(0.0, -1.0)


def test_a_setting_is_restored_by_the_last_of_those_who_change_it() -> None:
    value = ["users"]

    def put(new: str) -> None:
        value[0] = new

    setting = ProcessSetting(lambda: value[0], put, needed="ours")
    a, b = setting.changed(), setting.changed()
    a.__enter__()
    b.__enter__()
    assert value == ["ours"]
    a.__exit__(None, None, None)
    assert value == ["ours"]
    b.__exit__(None, None, None)
    assert value == ["users"]
    # One that never ended, as if Ctrl-C had arrived before the `with`: the end of the training restores the setting, and
    # those that come later do.
    with setting.kept():
        lost = setting.changed()
        lost.__enter__()
    assert value == ["users"]
    with setting.changed():
        assert value == ["ours"]
    assert value == ["users"]


def test_what_a_callback_sets_on_purpose_stays() -> None:
    """The end of the training put back what was set before it, also where training itself had changed nothing."""
    get_threads, set_threads = blas_thread_functions() or (lambda: 1, lambda n: None)
    n_threads = get_threads()

    class Setting(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 40:
                Distribution.set_default_validate_args(False)
                set_threads(1)
            return True

    try:
        set_threads(2)
        PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, engine="autograd").learn(96, Setting())
        assert not Distribution._validate_args
        assert get_threads() == 1
    finally:
        Distribution.set_default_validate_args(True)
        set_threads(n_threads)


@pytest.mark.parametrize("engine", ["auto", "autograd"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_training_within_no_grad_is_the_same_training(algorithm: Any, engine: str) -> None:
    """With autograd nothing moved, and nothing said so."""

    def parameters(gradients: bool) -> th.Tensor:
        model = algorithm("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=16, seed=0, engine=engine, device="cpu")
        with th.set_grad_enabled(gradients):
            model.learn(64)
            assert th.is_grad_enabled() == gradients
        return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])

    assert th.equal(parameters(False), parameters(True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inference_mode_is_refused_before_anything_is_lost(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=16, device="cpu")
    with th.inference_mode(), pytest.raises(ValueError, match=r"inference_mode.*call it outside"):
        model.learn(64)
    model.learn(64)


def all_errors_raised(train: Callable[[], Any]) -> None:
    before = np.seterr(all="raise")  # as SB3's guide to NaN advises
    try:
        train()
        assert set(np.geterr().values()) == {"raise"}
    finally:
        np.seterr(**before)


@pytest.mark.parametrize("algorithm", [stable_baselines3.PPO, PPO, TRPO])
@pytest.mark.parametrize("factor", [1e4, 1e-30])
def test_underflow_ends_no_training_of_a_confident_policy(algorithm: Any, factor: float) -> None:
    """exp of logits that are 10⁴ apart is 0 in float32; weights of 10⁻³⁰ have products below its smallest number."""
    model = algorithm("MlpPolicy", "Acrobot-v1", n_steps=64, batch_size=32, device="cpu", seed=0)
    with th.no_grad():
        model.policy.action_net.weight.mul_(factor)
    all_errors_raised(lambda: model.learn(128))


def test_underflow_ends_no_training_with_masks() -> None:
    """A masked action has a logit of -10⁸, whose exp is 0."""
    model = MaskablePPO("MlpPolicy", "MaskedRoute-v0", n_steps=32, batch_size=32, device="cpu", seed=0)
    all_errors_raised(lambda: model.learn(64))


def test_underflow_ends_no_training_with_memory() -> None:
    model: Any = RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", n_steps=16, batch_size=16, device="cpu", seed=0)
    with th.no_grad():
        model.policy.lstm_actor.weight_ih_l0.mul_(1e4)
    all_errors_raised(lambda: model.learn(32))

"""Faults known from other implementations, numbers 16 and up of test_weaknesses.py: ratios, logs, buffers, bounds."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.utils._python_dispatch import TorchDispatchMode
from toy_environments import ACTION_SPACES, collect, copy_rollout, parameter_vector, start, toy, updated

from sb3_policyopt import PPO, TRPO, NonFiniteError
from sb3_policyopt.maths import losses
from sb3_policyopt.objectives import Objective


def test_weakness_16_an_overflowing_ratio_has_a_finite_gradient() -> None:
    """exp(100) overflows in SB3: 0·∞ makes the gradient NaN even where the clip should have made it zero."""
    log_prob = th.tensor([3.0, -200.0, 1e30, 0.0], requires_grad=True)
    ratio = losses.probability_ratio(log_prob, th.zeros(4))
    for advantages in (th.ones(4), -th.ones(4)):
        log_prob.grad = None
        value = losses.clipped_surrogate(ratio, advantages, 0.2)
        assert isinstance(value, th.Tensor)
        value.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # torch does not type it
        assert log_prob.grad is not None
        assert log_prob.grad.isfinite().all()
        _, slope = losses.clipped_surrogate_and_slope(ratio.detach().numpy(), advantages.numpy(), 0.2)
        np.testing.assert_allclose(slope[[0, 3]], log_prob.grad[[0, 3]])  # inside ±20 both are ∂L/∂ln π


def test_weakness_16_an_absurd_old_log_probability_does_not_poison_training(engine: str) -> None:
    """End to end: one transition with ratio e^1000; parameters and optimizer state stay finite."""
    model = PPO("MlpPolicy", toy(), engine=engine, **SMALL)
    collect(model)
    model.rollout_buffer.log_probs[3, 0] = -1000
    model.train()
    assert parameter_vector(model.policy).isfinite().all()
    for entries in model.policy.optimizer.state_dict()["state"].values():
        assert all(value.isfinite().all() for value in entries.values())


def test_weakness_16_a_nan_stops_the_update_by_kl() -> None:
    """In SB3 ``nan > 1.5 * target_kl`` is False, so the early stop never saves the run."""
    model = PPO("MlpPolicy", toy(), target_kl=0.01, **SMALL)
    assert model.too_far(float("nan")) and not model.too_far(0.01) and model.too_far(0.02)


def test_weakness_17_the_smallest_standard_deviation_is_logged_and_can_be_bounded(engine: str) -> None:
    """SB3's log_std has no bounds, and the mean std that it logs hides one dimension that collapses."""
    model = PPO("MlpPolicy", toy(action=ACTION_SPACES["box_6"]), engine=engine, log_std_bounds=(-1.0, 0.5), **SMALL)
    with th.no_grad():
        model.policy.log_std[0] = -30.0
    log = updated(model)
    # The first of 20 steps lifts it to the bound; Adam moves ln σ by lr (1 − β₁)/√(1 − β₂) < 3.2 lr at most, up or not at all.
    assert np.exp(-1.0) * (1 - 1e-6) <= log["std_min"] <= np.exp(-1.0 + 20 * 3.2 * 3e-4)
    assert log["std"] > 0.8


def test_weakness_18_a_value_outside_the_clip_can_return_if_asked(engine: str) -> None:
    """SB3's value loss has no gradient outside ``clip_range_vf``, however wrong the value is; parity is the default."""
    returns = {}
    for clipping in ("clipped", "pessimistic"):
        options: dict[str, Any] = {**SMALL, "n_epochs": 1, "batch_size": 64, "ent_coef": 0.0, "max_grad_norm": float("inf")}
        model = PPO("MlpPolicy", toy(), engine=engine, clip_range_vf=0.01, value_clipping=clipping, **options)
        buffer = collect(model)
        buffer.values += 5.0  # V now lies 5 below its old value, far outside the bound
        buffer.returns = buffer.values + 1.0  # and the target above both
        before = model.policy.value_net.bias.item()
        model.train()
        returns[clipping] = model.policy.value_net.bias.item() - before
    assert returns["clipped"] == 0 and returns["pessimistic"] > 0


def test_weakness_20_the_kl_stop_can_look_at_whole_epochs_and_the_log_at_all(engine: str) -> None:
    """SB3 stops on one noisy minibatch, and logs the KL of the last epoch and the loss of the last minibatch."""
    epochs = {}
    for kl_stop in ("minibatch", "epoch"):
        options: dict[str, Any] = {**SMALL, "batch_size": 8, "n_epochs": 20, "learning_rate": 3e-3}
        model = PPO("MlpPolicy", toy(), engine=engine, target_kl=0.002, kl_stop=kl_stop, **options)
        updated(model)
        steps = {float(entries["step"]) for entries in model.policy.optimizer.state_dict()["state"].values()}
        epochs[kl_stop] = steps.pop() / 8
    assert epochs["epoch"] == int(epochs["epoch"]) < 20  # whole epochs, and an early stop
    assert epochs["minibatch"] != int(epochs["minibatch"])


class Synchronisations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Counts what would make the host wait for the device: reading a number out of a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (th.ops.aten._local_scalar_dense.default, th.ops.aten.nonzero.default):
            self.count += 1
        return func(*args, **(kwargs or {}))


SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}


@pytest.mark.parametrize("action", ["box_6", "discrete"])
@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_weakness_21_no_synchronisation_in_the_minibatch_loop(cls: type[Any], action: str) -> None:
    """SB3 reads five numbers per minibatch; here their number does not depend on how many minibatches there are."""
    counts = []
    for batch_size in (32, 8):
        options: dict[str, Any] = {**SMALL, "batch_size": batch_size}
        model = cls("MlpPolicy", toy(action=ACTION_SPACES[action]), engine="autograd", **options)
        collect(model)
        model.train()  # the first update also makes the optimizer's state
        collect(model)
        used = model.start_update()
        data = used.data(model.rollout_buffer)
        with Synchronisations() as synchronisations:
            if cls is PPO:
                objective = Objective.of(model.loss, model.current_coefficients())
                with used.updating(batch_size) as optimiser:
                    for minibatches in model.passes(data, 1, normalized=True):
                        model.run_epoch(objective, minibatches, used.gradient, optimiser)
            else:
                model.update_critic(used, data)
        counts.append(synchronisations.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["ent_coef", "vf_coef", "target_kl", "max_grad_norm"])
def test_weakness_22_schedules_of_what_sb3_takes_as_floats(name: str, engine: str) -> None:
    """In SB3 these are floats only."""
    model = PPO("MlpPolicy", toy(), engine=engine, **{**SMALL, name: "lin_0.4"})
    start(model)
    model._current_progress_remaining = 0.5
    assert updated(model)[name] == pytest.approx(0.2)


class CountedPolicy(ActorCriticPolicy):
    """Notes how many observations each call of ``predict_values`` gets."""

    sizes: list[int] = []

    def predict_values(self, obs: Any) -> Any:
        self.sizes.append(len(obs))
        return super().predict_values(obs)


def test_weakness_23_truncated_environments_are_bootstrapped_in_one_batch() -> None:
    """SB3 makes one forward pass of one observation for each environment that was cut off."""
    env: Any = toy(n_envs=8)

    def step_wait(original: Any = env.step_wait) -> Any:
        observations, rewards, dones, infos = original()
        dones[:] = True
        for info in infos:
            info["TimeLimit.truncated"], info["terminal_observation"] = True, observations[0]
        rewards.flags.writeable = False  # and the environment's own array is not written to
        return observations, rewards, dones, infos

    env.step_wait = step_wait
    model = PPO(CountedPolicy, env, n_steps=3, batch_size=24, seed=0, device="cpu")
    callback = start(model)
    CountedPolicy.sizes.clear()
    model.collect_rollouts(env, callback, model.rollout_buffer, 3)
    assert CountedPolicy.sizes[-4:] == [8, 8, 8, 8]  # one at each step, one at the end
    assert 1 not in CountedPolicy.sizes


def test_weakness_23_truncation_and_termination_as_in_sb3() -> None:
    """The batched bootstrap gives SB3's rewards: the same rollout through both loops."""
    stock = StockPPO("MlpPolicy", toy(action=ACTION_SPACES["discrete"]), **SMALL)
    ours = PPO("MlpPolicy", toy(action=ACTION_SPACES["discrete"]), engine="autograd", **SMALL)
    ours.policy.load_state_dict(stock.policy.state_dict())
    models: list[Any] = [stock, ours]
    for model in models:
        callback = start(model)
        th.manual_seed(0)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 16)
    for name in ("observations", "actions", "episode_starts", "rewards", "values", "log_probs", "advantages", "returns"):
        np.testing.assert_allclose(
            getattr(ours.rollout_buffer, name), getattr(stock.rollout_buffer, name), rtol=1e-5, atol=1e-5, err_msg=name
        )
    assert stock.rollout_buffer.episode_starts[1:].any()


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_weakness_24_the_log_of_a_run_holds_its_last_update(cls: type[Any]) -> None:
    """SB3 writes the log before the update: one rollout late, the last update never."""
    model = cls("MlpPolicy", toy(), **SMALL)
    start(model)
    dumped: Any = []
    model.set_logger(type(model.logger)(folder=None, output_formats=[]))
    dump = model.logger.dump
    model.logger.dump = lambda step=0: dumped.append(dict(model.logger.name_to_value)) or dump(step)
    model.learn(128)
    assert len(dumped) == 2 and all("train/value_loss" in row for row in dumped)
    assert [row["train/n_updates"] for row in dumped] == ([10, 20] if cls is PPO else [1, 2])


def test_weakness_26_an_update_makes_no_copy_of_the_whole_rollout_but_the_flat_one(engine: str) -> None:
    """SB3 copies every array once an epoch, through rows of indices; what is loaded here are the buffer's own flat arrays."""
    model = PPO("MlpPolicy", toy(), engine=engine, **SMALL)
    buffer = collect(model)
    (rollout,) = model.prepare_engine().data(buffer).whole()
    for name, mine in (("observations", "observations"), ("advantages", "advantages"), ("log_probs", "old_log_prob")):
        assert np.shares_memory(np.asarray(getattr(rollout, mine)), getattr(buffer, name)), name


def test_weakness_27_actions_of_a_bounded_space_reach_the_environment_within_bounds(engine: str) -> None:
    """As in SB3 the log-probability is that of the unclipped action, which the buffer keeps; the environment never sees it."""
    env: Any = toy(action=ACTION_SPACES["box_6"])
    seen: Any = []
    step = env.step
    env.step = lambda actions: seen.append(actions.copy()) or step(actions)
    model = PPO("MlpPolicy", env, engine=engine, **SMALL)
    buffer = collect(model)
    assert np.abs(np.array(seen)).max() <= 1 < np.abs(buffer.actions).max()
    np.testing.assert_array_equal(np.clip(buffer.actions, -1, 1), np.array(seen))


def test_weakness_27_squashed_actions_need_gsde_and_work_with_it() -> None:
    """SB3's policy squashes with gSDE only, and says so."""
    with pytest.raises(AssertionError, match="gSDE"):
        PPO("MlpPolicy", toy(), policy_kwargs={"squash_output": True}, **SMALL)
    for cls in (PPO, TRPO):
        model = cls("MlpPolicy", toy(), use_sde=True, policy_kwargs={"squash_output": True}, **SMALL)
        buffer = collect(model)
        assert np.abs(buffer.actions).max() < 1
        model.train()


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_nan_reward_is_named_before_it_reaches_the_networks(cls: type[Any], engine: str) -> None:
    """In SB3 it surfaces updates later as "Expected parameter loc ... to satisfy the constraint Real()"."""
    env: Any = toy()
    step_wait, calls = env.step_wait, []

    def poisoned() -> Any:
        observations, rewards, dones, infos = step_wait()
        calls.append(1)
        if len(calls) == 20:
            rewards[2] = np.nan
        return observations, rewards, dones, infos

    env.step_wait = poisoned
    model = cls("MlpPolicy", env, engine=engine, **SMALL)
    with pytest.raises(NonFiniteError, match="reward in environment 2"):
        model.learn(256)
    assert parameter_vector(model.policy).isfinite().all()


def test_the_rollout_copied_into_the_buffer_is_the_one_that_trains(engine: str) -> None:
    """What the other tests rely on: an update depends on the buffer's content only."""
    first, second = (PPO("MlpPolicy", toy(), engine=engine, **SMALL) for _ in range(2))
    collect(first)
    start(second)
    copy_rollout(first.rollout_buffer, second.rollout_buffer)
    for model in (first, second):
        np.random.seed(0)
        model.train()
    assert th.equal(parameter_vector(first.policy), parameter_vector(second.policy))

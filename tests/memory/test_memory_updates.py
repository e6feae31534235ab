"""R1, R2: sequences in an update: pieces, limits, thinning, and the trust region through memory."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from contrib_twins import MASKABLE, copy_context, masked_toy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from toy_environments import ACTION_SPACES, collect, copy_rollout, parameter_vector, start, toy

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.rollout.buffers import STATES

SMALL: dict[str, Any] = {"n_steps": 24, "batch_size": 32, "seed": 0, "device": "cpu"}
ACTIONS = {name: ACTION_SPACES[name] for name in ("box_6", "discrete", "multi_discrete", "multi_binary")}
CRITICS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "none": {"enable_critic_lstm": False},
}


def model_of(
    algorithm: type, action: str = "discrete", policy: str = "MlpLstmPolicy", network: Any = None, **arguments: Any
) -> Any:
    env = masked_toy(action=ACTIONS[action]) if "Maskable" in policy else toy(action=ACTIONS[action])
    options = {} if policy.endswith("MlpPolicy") else {"lstm_hidden_size": 6, **(network or {})}
    options["net_arch"] = [8]
    passes = {"n_epochs": 2} if algorithm is PPO else {"n_critic_updates": 2}
    return algorithm(policy, env, policy_kwargs=options, **{**SMALL, **passes, **arguments})


def same_rollout(models: list[Any], seed: int = 0) -> None:
    """Give all models the parameters of the first one and a rollout of it."""
    collect(models[0])
    for model in models[1:]:
        start(model)
        model.policy.load_state_dict(models[0].policy.state_dict())
        copy_rollout(models[0].rollout_buffer, model.rollout_buffer)
        copy_context(models[0].rollout_buffer, model.rollout_buffer)
    for model in models:
        np.random.seed(seed)
        th.manual_seed(seed)
        model.train()


def assert_same_parameters(models: list[Any], tolerance: float) -> None:
    reference = parameter_vector(models[0].policy)
    for model in models[1:]:
        np.testing.assert_allclose(parameter_vector(model.policy), reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MaskableMlpLstmPolicy", "MaskableMlpPolicy"])
def test_R1_micro_batches_give_the_same_update(algorithm: type[Any], policy: str, engine: str) -> None:
    """
    Pieces of whole sequences; those of the toy have up to 11 rows, so that with 1 each is a piece by itself.

    TRPO divides by the curvature along its step, and conjugate gradient multiplies rounding by the condition number.
    """
    models = [model_of(algorithm, policy=policy, engine=engine)]
    models += [model_of(algorithm, policy=policy, micro_batch_size=size) for size in (1, 13, 1000)]
    before = parameter_vector(models[0].policy)
    same_rollout(models)
    moved = float((parameter_vector(models[0].policy) - before).abs().max())
    assert moved > 5e-4
    assert_same_parameters(models, 2e-6 if algorithm is PPO else 0.01 * moved)


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
@pytest.mark.parametrize("rnn", ["lstm", "gru"])
@pytest.mark.parametrize("action", ACTIONS)
def test_R1_auto_and_autograd_make_the_same_update(algorithm: type[Any], rnn: str, action: str) -> None:
    models = [model_of(algorithm, action, network={"rnn": rnn}, engine=engine) for engine in ("autograd", "auto")]
    before = parameter_vector(models[0].policy)
    same_rollout(models)
    moved = float((parameter_vector(models[0].policy) - before).abs().max())
    assert moved > 5e-4
    assert_same_parameters(models, 2e-6 if algorithm is PPO else 0.01 * moved)


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_R1_a_limit_longer_than_all_sequences_cuts_nothing(
    algorithm: type[Any], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one minibatch, where the order of the sequences is mere rounding, if the rotation does not cut one in two."""
    monkeypatch.setattr(np.random, "randint", lambda size: 0)
    models = [model_of(algorithm, engine=engine, batch_size=96, sequence_length=length) for length in (None, 24)]
    same_rollout(models)
    assert_same_parameters(models, 2e-6 if algorithm is PPO else 1e-4)


def test_R1_sequence_length_1_is_a_policy_whose_memory_is_part_of_its_observation(engine: str) -> None:
    """
    With one row a sequence nothing is differentiated through time, and each row starts from its stored state. So the loss is
    that of rows taken by themselves with their states as constants, whose gradient torch gives here row by row.
    """
    model = model_of(PPO, engine=engine, sequence_length=1, batch_size=96, n_epochs=1, max_grad_norm=1e9)
    model.policy.optimizer = th.optim.SGD(model.policy.parameters(), lr=1e-2)
    model.lr_schedule = lambda _: 1e-2
    collect(model)
    other = copy.deepcopy(model.policy)
    model.train()
    buffer = model.rollout_buffer
    states = [th.as_tensor(getattr(buffer, name)).transpose(0, 1) for name in STATES]
    values, log_prob, _ = other.evaluate_actions(
        th.as_tensor(buffer.observations),
        th.as_tensor(buffer.actions).long().flatten(),
        RNNStates((states[0].contiguous(), states[1].contiguous()), (states[2].contiguous(), states[3].contiguous())),
        th.as_tensor(buffer.episode_starts).flatten().float(),
    )
    advantages = th.as_tensor(buffer.advantages).flatten()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = th.exp(log_prob - th.as_tensor(buffer.log_probs).flatten())
    loss = -(ratio * advantages).mean() + 0.5 * ((values.flatten() - th.as_tensor(buffer.returns).flatten()) ** 2).mean()
    loss.backward()
    moved = 0.0
    for (name, before), after in zip(other.named_parameters(), model.policy.parameters(), strict=True):
        step = -1e-2 * before.grad
        moved = max(moved, float(step.abs().max()))
        np.testing.assert_allclose((after - before).detach(), step, rtol=1e-3, atol=2e-6, err_msg=name)
    assert moved > 1e-3


def test_R1_sequence_length_changes_the_gradient(engine: str) -> None:
    """Else the tests above would compare equals with equals."""
    models = [model_of(PPO, engine=engine, batch_size=96, sequence_length=length) for length in (None, 1)]
    same_rollout(models)
    assert float((parameter_vector(models[0].policy) - parameter_vector(models[1].policy)).abs().max()) > 1e-4


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MaskableMlpLstmPolicy"])
def test_R1_sub_sampling_thins_the_fisher_matrix_alone(policy: str, engine: str) -> None:
    """J, g and KL are of all rows, the metric of every third sequence."""
    model = model_of(TRPO, policy=policy, engine=engine, sub_sampling_factor=3)
    collect(model)
    engine_in_use = model.prepare_engine()
    (batch,) = engine_in_use.data(model.rollout_buffer).whole()
    batch = model.normalized(batch)
    vector = th.randn(engine_in_use.n_actor, generator=th.Generator().manual_seed(0))
    found = []  # each region before the next one is made, which may use its memory
    for factor, rows in ((3, batch), (1, batch), (1, batch.thinned(3))):
        model.sub_sampling_factor = factor
        region = model.trust_region(engine_in_use, rows)
        found.append((region.surrogate, region.gradient.clone(), region.fisher(vector).clone()))
    thinned, whole, of_third = found
    assert thinned[0] == pytest.approx(whole[0], abs=1e-7)
    np.testing.assert_allclose(thinned[1], whole[1], rtol=0, atol=1e-7)
    scale = float(thinned[2].abs().max())
    np.testing.assert_allclose(thinned[2], of_third[2], rtol=0, atol=1e-5 * scale)
    assert float((thinned[2] - whole[2]).abs().max()) > 1e-2 * scale
    model.sub_sampling_factor = 3
    model.train()
    assert 0 < model.logger.name_to_value["train/kl_divergence_loss"] <= model.target_kl


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("rnn", ["lstm", "gru"])
def test_the_actors_step_leaves_the_critic_and_the_critics_the_actor(critic: str, rnn: str, engine: str) -> None:
    """With ``n_critic_updates=0`` the critic's own parameters keep their bits, and afterwards the actor's."""
    model = model_of(TRPO, network={**CRITICS[critic], "rnn": rnn}, engine=engine, n_critic_updates=0)
    collect(model)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.train()
    changed = {name for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}
    of_actor = ("lstm_actor", "mlp_extractor.policy_net", "action_net")
    assert changed == {name for name in before if name.startswith(of_actor)}
    model.n_critic_updates, model.target_kl = 2, 0.0
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    collect(model)
    model.train()
    changed = {name for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}
    assert changed == {name for name in before if not name.startswith(of_actor)}


def test_maskable_spaces_are_those_of_the_actions() -> None:
    assert set(MASKABLE) < set(ACTIONS)


@pytest.mark.fast
def test_a_switch_that_does_not_fit_the_modules_leaves_the_policy_to_autograd() -> None:
    """Its own methods look at ``shared_lstm``, so that with it they pass the critic's linear layer by."""
    model = model_of(PPO, network=CRITICS["none"])
    assert model.prepare_engine().name == "hybrid"
    model.policy.shared_lstm = True
    engine = model.prepare_engine()
    assert engine.name == "autograd" and "shared_lstm" in engine.reason

"""R1: what a policy with memory collects, against its networks run by hand over whole episodes; what callbacks see."""

from typing import Any

import numpy as np
import pytest
import torch as th
from contrib_twins import MASKABLE
from recorded import by_hand, episodes_of, recorded
from sb3_contrib import RecurrentPPO as ContribPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from toy_environments import ACTION_SPACES, collect, start, toy

from sb3_policyopt import PPO, TRPO, RecurrentPPO, RecurrentTRPO
from sb3_policyopt.rollout.buffers import STATES

SMALL: dict[str, Any] = {"n_steps": 20, "batch_size": 20, "seed": 0, "device": "cpu", "n_epochs": 1}
NETWORK = {"lstm_hidden_size": 6, "net_arch": [8], "log_std_init": -1.0}
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "separate": ("MlpLstmPolicy", {}),
    "shared": ("MlpLstmPolicy", {"shared_lstm": True, "enable_critic_lstm": False}),
    "none": ("MlpLstmPolicy", {"enable_critic_lstm": False}),
    "two layers": ("MlpLstmPolicy", {"n_lstm_layers": 2}),
    "gru": ("MlpLstmPolicy", {"rnn": "gru"}),
    "gru, shared, two layers": (
        "MlpLstmPolicy",
        {"rnn": "gru", "n_lstm_layers": 2, "shared_lstm": True, "enable_critic_lstm": False},
    ),
    "masks": ("MaskableMlpLstmPolicy", {}),
    "masks, gru, no critic": ("MaskableMlpLstmPolicy", {"rnn": "gru", "enable_critic_lstm": False}),
}


def model_of(name: str, engine: str = "auto", action: Any = MASKABLE["discrete"], **arguments: Any) -> Any:
    policy, options = POLICIES[name]
    network = {**NETWORK, **options}
    return PPO(policy, recorded(action), engine=engine, policy_kwargs=network, **{**SMALL, **arguments})


@pytest.mark.fast
@pytest.mark.parametrize("name", POLICIES)
def test_R1_a_rollout_is_that_of_the_networks_over_whole_episodes(name: str, engine: str) -> None:
    """Values, states, bootstrapped rewards and the last value; the second rollout begins in the middle of episodes."""
    model = model_of(name, engine)
    with th.no_grad():
        for parameter in model.policy.parameters():  # large weights, so that memory matters
            parameter += 0.5 * th.randn(parameter.shape)
    n_truncated = 0
    for rollout in (1, 2):
        buffer = collect(model)
        rows = slice((rollout - 1) * 20, rollout * 20)
        for number in range(3):
            expected = by_hand(model.policy, episodes_of(model.env, number), model.gamma)
            np.testing.assert_allclose(buffer.values[:, number], expected.values[rows], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(buffer.rewards[:, number], expected.rewards[rows], rtol=1e-4, atol=1e-5)
            going_on = buffer.episode_starts[:, number] == 0
            for states, found in zip(expected.hidden, ("hidden_states_pi", "hidden_states_vf"), strict=True):
                of_steps = getattr(buffer, found)[going_on, :, number]
                np.testing.assert_allclose(of_steps, states[rows][going_on], rtol=1e-4, atol=1e-5)
            # G of the last step is r + γ V(s') for any λ; an episode that just ended has no V(s').
            last = buffer.rewards[-1, number] + model.gamma * expected.last_value
            if episodes_of(model.env, number)[-1].rewards:
                assert buffer.returns[-1, number] == pytest.approx(last, rel=1e-4, abs=1e-5)
            n_truncated += sum(bool(episode.truncated) for episode in episodes_of(model.env, number))
    assert n_truncated >= 4


def test_R1_log_probabilities_of_a_rollout_are_those_of_its_sequences(engine: str) -> None:
    """π_old as it was when acting is π at the update's start: the ratio r(θ) is 1 and the KL 0."""
    for name in POLICIES:
        model = model_of(name, engine, learning_rate=0.0)
        collect(model)
        model.train()
        logged = model.logger.name_to_value
        assert logged["train/approx_kl"] == pytest.approx(0, abs=1e-7), name  # r − 1 − ln r in float32
        assert logged["train/clip_fraction"] == 0, name


def test_a_rollout_goes_on_from_the_last_states(engine: str) -> None:
    model = model_of("separate", engine)
    collect(model)
    before = model._last_lstm_states
    assert [part.shape for part in (*before.pi, *before.vf)] == [(1, 3, 6)] * 4
    collect(model)
    for name, part in zip(STATES, (*before.pi, *before.vf), strict=True):
        np.testing.assert_array_equal(getattr(model.rollout_buffer, name)[0], np.asarray(part))


class Look(BaseCallback):
    """Keeps the names of local variables, and what those of memory hold at each step."""

    def _on_training_start(self) -> None:
        self.names: set[str] = set()
        self.steps: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.names |= set(self.locals)
        states, starts = self.locals["lstm_states"], self.model._last_episode_starts
        assert starts is not None
        self.steps.append(
            {
                "hidden": np.asarray(states.pi[0]).copy(),
                "shapes": [tuple(part.shape) for part in (*states.pi, *states.vf)],
                "episode_starts": self.locals["episode_starts"].numpy().copy(),
                "dtype": self.locals["episode_starts"].dtype,
                "last": starts.copy(),
            }
        )
        return True


def test_callbacks_see_states_as_sb3_contribs(engine: str) -> None:
    stock, ours = Look(), Look()
    arguments: dict[str, Any] = {"policy_kwargs": {"lstm_hidden_size": 6}, **SMALL}
    ContribPPO("MlpLstmPolicy", recorded(), **arguments).learn(60, callback=stock)
    model: Any = RecurrentPPO("MlpLstmPolicy", recorded(), engine=engine, **arguments).learn(60, callback=ours)
    # What is left out are the variables of sb3-contrib's loop over finished episodes.
    of_loop = {"idx", "done_", "terminal_obs", "terminal_value", "terminal_lstm_state"}
    assert stock.names - of_loop <= ours.names
    for step in ours.steps:
        assert step["shapes"] == [(1, 3, 6)] * 4
        assert step["dtype"] == th.float32
        np.testing.assert_array_equal(step["episode_starts"], step["last"])
    assert ours.steps[0]["episode_starts"].tolist() == [1, 1, 1]
    assert 0 < sum(step["episode_starts"].sum() for step in ours.steps[1:]) < 30
    # The states of a step are those after it, which the next step starts from.
    stored = model.rollout_buffer.hidden_states_pi.reshape(3, 20, 1, 6).transpose(1, 2, 0, 3)
    for before, step in zip(stored[1:], ours.steps, strict=False):
        np.testing.assert_array_equal(before, step["hidden"])


def test_callbacks_see_masks_and_states_together() -> None:
    class Both(BaseCallback):
        def _on_step(self) -> bool:
            assert self.locals["action_masks"].shape == (3, 4)
            assert self.locals["lstm_states"].vf[1].shape == (1, 3, 6)
            return True

    both = Both()
    model_of("masks").learn(60, callback=both)
    assert both.n_calls == 20


@pytest.mark.parametrize("algorithm", [RecurrentPPO, RecurrentTRPO])
def test_squashed_actions_are_scaled_to_the_box(algorithm: type[Any], engine: str) -> None:
    """The policy's actions are within ±1. Pendulum's Box is ±2; sb3-contrib clips, so that it gets ±1 at most."""
    sent: list[np.ndarray] = []

    class Sent(BaseCallback):
        def _on_step(self) -> bool:
            np.testing.assert_allclose(self.locals["clipped_actions"], 2 * self.locals["actions"], rtol=1e-6)
            sent.append(self.locals["clipped_actions"])
            return True

    options = {"lstm_hidden_size": 6, "squash_output": True, "log_std_init": 2.0}
    arguments = {key: value for key, value in SMALL.items() if key != "n_epochs"}
    env = make_vec_env("Pendulum-v1", 2, seed=0)
    model = algorithm("MlpLstmPolicy", env, use_sde=True, policy_kwargs=options, engine=engine, **arguments)
    model.learn(80, callback=Sent())
    assert 1.5 < np.abs(sent).max() <= 2
    actions = model.predict(model.env.observation_space.sample()[None], deterministic=False)[0]
    assert actions.shape == (1, 1)


def test_actions_of_a_gaussian_are_clipped_to_the_box(engine: str) -> None:
    model = model_of("separate", engine, ACTION_SPACES["box_6"])
    model.policy.log_std.data.fill_(1.0)
    sent: list[float] = []

    class Sent(BaseCallback):
        def _on_step(self) -> bool:
            sent.append(np.abs(self.locals["clipped_actions"]).max())
            return True

    model.learn(60, callback=Sent())
    assert max(sent) == 1 and np.abs(model.rollout_buffer.actions).max() > 1


@pytest.mark.parametrize("make", [PPO, TRPO])
def test_sequence_length_is_for_policies_with_memory(make: type[Any]) -> None:
    with pytest.raises(ValueError, match="sequence_length is for policies with memory"):
        make("MlpPolicy", toy(), sequence_length=4, device="cpu")
    with pytest.raises(ValueError, match="sequence_length"):
        make("MlpLstmPolicy", toy(), sequence_length=0, device="cpu")


@pytest.mark.parametrize("name", ["MlpPolicy", "CnnPolicy", "MaskableMlpPolicy"])
def test_recurrent_algorithms_need_a_policy_with_memory(name: str) -> None:
    for algorithm in (RecurrentPPO, RecurrentTRPO):
        with pytest.raises(ValueError, match="trains policies with memory"):
            algorithm(name, toy(action=MASKABLE["discrete"]), device="cpu")


def test_rnn_is_lstm_or_gru_and_for_policies_with_memory() -> None:
    with pytest.raises(ValueError, match="rnn must be one of lstm, gru"):
        PPO("MlpLstmPolicy", toy(), policy_kwargs={"rnn": "elman"}, device="cpu")
    with pytest.raises(ValueError, match="rnn is for policies with memory"):
        PPO("MlpPolicy", toy(), policy_kwargs={"rnn": "gru"}, device="cpu")


def test_a_gru_has_three_gates_and_an_lstm_four(engine: str) -> None:
    """(in + hidden + 2 biases) weights a gate: 4 inputs, 6 hidden units."""
    for rnn, gates in (("lstm", 4), ("gru", 3)):
        model: Any = PPO("MlpLstmPolicy", recorded(), engine=engine, policy_kwargs={**NETWORK, "rnn": rnn}, **SMALL)
        network = model.policy.lstm_actor
        assert sum(p.numel() for p in network.parameters()) == gates * 6 * (4 + 6 + 2)
        in_optimizer = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
        assert in_optimizer == {id(p) for p in model.policy.parameters()}
        before = [p.detach().clone() for p in network.parameters()]
        model.learn(60)
        assert not any(th.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("name", POLICIES)
def test_predict_step_by_step_is_the_rollout(name: str, engine: str) -> None:
    """Deterministic actions with the state handed on are the modes of the networks over a whole episode."""
    model = model_of(name, engine)
    observations = np.random.default_rng(0).normal(size=(7, 2, 4)).astype(np.float32)
    start(model)
    for begun in (False, True):
        state, found = None, []
        for step, observation in enumerate(observations):
            starts = np.array([step == 0, begun and step == 4])
            action, state = model.predict(observation, state, starts, deterministic=True)
            found.append(action)
        for row, parts in ((0, [slice(0, 7)]), (1, [slice(0, 4), slice(4, 7)] if begun else [slice(0, 7)])):
            for part in parts:
                outputs, _ = model.policy.lstm_actor(th.as_tensor(observations[part, row])[:, None], zeros(model))
                logits = model.policy.action_net(model.policy.mlp_extractor.forward_actor(outputs[:, 0]))
                np.testing.assert_array_equal(np.array(found)[part, row], logits.argmax(1))


def zeros(model: Any) -> tuple[th.Tensor, th.Tensor]:
    shape = (model.policy.lstm_actor.num_layers, 1, 6)
    return th.zeros(shape), th.zeros(shape)

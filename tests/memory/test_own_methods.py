"""R1: methods of a user's own policy with memory, and networks below the memory."""

from typing import Any

import numpy as np
import pytest
import torch as th
from contrib_twins import copy_context
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from toy_environments import ACTION_SPACES, IMAGE, collect, copy_rollout, parameter_vector, start, toy

from sb3_policyopt import PPO, TRPO

SMALL: dict[str, Any] = {"n_steps": 24, "batch_size": 32, "seed": 0, "device": "cpu"}
NETWORK: dict[str, Any] = {"lstm_hidden_size": 6, "net_arch": [8]}


class OwnSequences(RecurrentActorCriticPolicy):
    """The states fade at every step of the environments, and not at those of an update."""

    n_calls = 0

    @staticmethod
    def _process_sequence(features: Any, lstm_states: Any, episode_starts: Any, lstm: Any) -> Any:
        OwnSequences.n_calls += 1
        faded = tuple(0.5 * state for state in lstm_states)
        return RecurrentActorCriticPolicy._process_sequence(features, faded, episode_starts, lstm)


class OwnEvaluation(RecurrentActorCriticPolicy):
    """Notes where it is told that episodes start."""

    seen: list[th.Tensor]

    def evaluate_actions(self, obs: Any, actions: Any, lstm_states: Any, episode_starts: Any) -> Any:
        self.seen.append(episode_starts)
        return super().evaluate_actions(obs, actions, lstm_states, episode_starts)


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_R1_an_own_process_sequence_is_called(algorithm: type[Any]) -> None:
    OwnSequences.n_calls = 0
    model = algorithm(OwnSequences, toy(), policy_kwargs=NETWORK, **SMALL)
    collect(model)
    in_rollout = OwnSequences.n_calls
    model.train()
    assert model.engine_in_use.name == "autograd" and "_process_sequence" in model.engine_in_use.reason
    assert in_rollout >= 24 and OwnSequences.n_calls > in_rollout


def test_R1_own_methods_are_told_where_episodes_start() -> None:
    """The states of a sequence that an episode begins are zero anyway; a method of a user may do more with the flag."""
    model = PPO(OwnEvaluation, toy(), policy_kwargs=NETWORK, n_epochs=1, **SMALL)
    model.policy.seen = []  # type: ignore[assignment]
    collect(model)
    starts = model.rollout_buffer.episode_starts.astype(bool)
    model.train()
    flags = th.cat(model.policy.seen)  # type: ignore[arg-type]
    # Sequences that an episode begins: those that start in the rollout; a rotated minibatch cuts at most one more in two,
    # and what follows the cut is begun by no episode.
    assert int(flags.sum()) == int(starts.sum()) > 4


@pytest.mark.parametrize("rnn", ["lstm", "gru"])
def test_R2_what_lies_below_the_memory_gets_its_gradient(rnn: str) -> None:
    models = [
        PPO(
            "CnnLstmPolicy",
            toy(IMAGE, ACTION_SPACES["discrete"]),
            policy_kwargs={"lstm_hidden_size": 6, "net_arch": [], "rnn": rnn},
            n_epochs=2,
            engine=engine,
            **SMALL,
        )
        for engine in ("autograd", "auto")
    ]
    collect(models[0])
    start(models[1])
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    copy_rollout(models[0].rollout_buffer, models[1].rollout_buffer)
    copy_context(models[0].rollout_buffer, models[1].rollout_buffer)
    before = parameter_vector(models[0].policy)
    below = {name: value.clone() for name, value in models[1].policy.features_extractor.state_dict().items()}
    for model in models:
        # A step of Adam is the sign of a gradient that is mere rounding.
        model.policy.optimizer = th.optim.SGD(model.policy.parameters(), lr=0.1)
        model.lr_schedule = lambda _: 0.1
        np.random.seed(0)
        model.train()
    assert models[1].engine_in_use is not None and models[1].engine_in_use.name == "hybrid"
    assert float((parameter_vector(models[0].policy) - before).abs().max()) > 5e-4
    np.testing.assert_allclose(parameter_vector(models[1].policy), parameter_vector(models[0].policy), rtol=0, atol=2e-6)
    for name, value in models[1].policy.features_extractor.state_dict().items():
        assert float((value - below[name]).abs().max()) > 1e-4, name

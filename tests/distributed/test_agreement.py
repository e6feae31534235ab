"""What ranks agree on, tested in one process: an order of the parameters, seeds, terms, types; and what they refuse."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch as th
import torch.distributed as dist
from stable_baselines3.common.env_util import make_vec_env

from sb3_policyopt import PPO
from sb3_policyopt.maths.terms import Maximum, Terms
from sb3_policyopt.objectives import TrustRegion
from sb3_policyopt.objectives.objective import Objective
from sb3_policyopt.optimisation.flat_parameters import FlatParameters
from sb3_policyopt.parallel import group, leader, minibatches, one_model
from sb3_policyopt.parallel.layout import agreed_split
from sb3_policyopt.parallel.minibatches import SharedGradient
from sb3_policyopt.rollout.batch import Batch

SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "device": "cpu"}


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend to be one of three ranks, as far as one can without meeting the others."""

    def pretend(rank: int) -> None:
        launcher = {"RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
        for name, value in launcher.items():
            monkeypatch.setenv(name, str(value))

    return pretend


# ---------------------------------------------------------------------- order of the parameters


def test_the_actor_is_what_any_rank_reaches() -> None:
    of_ranks = [
        ("autograd", ["expert.0", "head"], ["expert.1", "value"]),
        ("autograd", ["expert.1", "head"], ["expert.0", "value"]),
    ]
    assert agreed_split(of_ranks) == (["expert.0", "head", "expert.1"], ["value"])
    assert agreed_split(of_ranks[:1] * 2) == (of_ranks[0][1], of_ranks[0][2])


@pytest.mark.parametrize(
    "other",
    [("closed_form", ["a", "b"], ["c"]), ("autograd", ["a"], ["c"]), ("autograd", ["a", "b"], ["c", "d"])],
    ids=["engine", "one frozen", "one more"],
)
def test_ranks_with_other_parameters_or_engines_are_refused(other: Any) -> None:
    with pytest.raises(ValueError, match=r"freeze, replace and override the same on all ranks"):
        agreed_split([("autograd", ["a", "b"], ["c"]), other])


def compared(monkeypatch: pytest.MonkeyPatch, *models: Any) -> None:
    """Compare models as ranks do when they begin to learn."""
    told: list[Any] = []

    def gather(mine: Any) -> Any:
        told.append(mine)
        return told

    monkeypatch.setattr(one_model, "gather", gather)
    for model in models:
        one_model.check_alike(model)


def test_policies_that_differ_in_the_order_of_equal_shapes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [PPO("MlpPolicy", "CartPole-v1", seed=0, **SMALL) for _ in range(2)]
    compared(monkeypatch, *models)
    for model, names in zip(models, (("a", "b"), ("b", "a")), strict=True):
        for name in names:
            model.policy.add_module(name, th.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="the list of its parameters differs between the ranks"):
        compared(monkeypatch, *models)


def test_types_whose_sums_lose_digits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", **SMALL)
    model.policy.to(th.bfloat16)
    with pytest.raises(ValueError, match=r"policy: its parameters are of torch\.bfloat16"):
        compared(monkeypatch, model)


# ---------------------------------------------------------------------- seeds


@pytest.mark.parametrize("sizes", [(3, 1, 2), (1, 3, 1), (2, 2, 2)])
def test_ranks_of_different_size_are_seeded_as_one_process(
    as_rank: Any, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
) -> None:
    """Ranks 0 and 1 had an environment with the same seed, if rank 0 had more of them."""

    def first_observations(n_envs: int) -> Any:
        env = make_vec_env("CartPole-v1", n_envs=n_envs)
        model = PPO("MlpPolicy", env, seed=7, **SMALL)
        one_model.seed_apart(model)
        observations, noise = env.reset(), th.rand(3)
        th.manual_seed(0)
        one_model.seed_apart(model)  # a second training does not begin the streams again
        assert th.equal(th.rand(3), th.rand(3, generator=th.Generator().manual_seed(0)))
        return observations, noise

    monkeypatch.setattr(one_model, "gather", lambda mine: [sum(sizes)])
    expected, _ = first_observations(sum(sizes))
    monkeypatch.setattr(one_model, "gather", lambda mine: list(sizes))
    parts = []
    for rank, n_envs in enumerate(sizes):
        as_rank(rank)
        parts.append(first_observations(n_envs))
    np.testing.assert_array_equal(np.concatenate([observations for observations, _ in parts]), expected)
    assert len({tuple(noise.tolist()) for _, noise in parts}) == len(sizes)


# ---------------------------------------------------------------------- gradients and terms

BATCH = Batch(*(np.zeros(4, np.float32),) * 6)
EMPTY = BATCH.rows(slice(0, 0))


class Computing:
    """Leaves a gradient of ones in the flat vector, that of some parameters absent, and returns the given terms."""

    def __init__(self, *steps: tuple[Terms, set[int]]) -> None:
        self.flat = FlatParameters([th.nn.Parameter(th.zeros(2)) for _ in range(3)])
        self.steps = iter(steps)

    def __call__(self, objective: Any, batch: Any) -> Terms:
        terms, absent = next(self.steps)
        self.flat.gather([None if i in absent else th.ones(2) for i in range(3)], range(3))
        return terms


OBJECTIVE: Any = Objective(lambda batch: (th.zeros(()), {}))


@pytest.fixture
def other_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Another rank, which says what the test says; by default what this one says, and for sums nothing."""
    says: dict[str, Any] = {}
    monkeypatch.setattr(minibatches, "gather", lambda mine: [mine, says.get("gather", mine)])
    monkeypatch.setattr(minibatches, "sum_", lambda tensor: tensor.add_(says["message"]) if "message" in says else tensor)
    yield says


def test_a_parameter_is_absent_if_it_is_on_all_ranks(other_rank: Any) -> None:
    loss: Terms = {"loss": 1.0}
    compute = Computing((loss, {0, 2}), (loss, {0, 2}))
    shared: SharedGradient[Any] = SharedGradient(compute, compute.flat)
    shared(OBJECTIVE, BATCH)  # the other rank has an empty minibatch
    assert compute.flat.absent == {0, 2}
    # 4 rows on the other rank, too: a gradient of 3 for parameters 1 and 2, a loss of 2, the size, and which are present.
    other_rank["message"] = th.tensor([0, 0, 12, 12, 12, 12, 8, 4, 0, 1, 1], dtype=th.float32)
    terms = shared(OBJECTIVE, BATCH)
    assert compute.flat.absent == {0}
    assert terms["loss"] == pytest.approx(1.5)
    assert compute.flat.gradient.tolist() == [0, 0, 2, 2, 1.5, 1.5]
    shared(OBJECTIVE, EMPTY)  # here nothing, there the same as before
    assert compute.flat.absent == {0}
    assert compute.flat.gradient.tolist() == [0, 0, 3, 3, 3, 3]
    other_rank["message"] = th.tensor([0, 0, 0, 0, 12, 12, 8, 4, 0, 0, 1], dtype=th.float32)
    shared(OBJECTIVE, EMPTY)  # an empty minibatch does not keep what the one before used
    assert compute.flat.absent == {0, 1}


def test_terms_with_other_names_are_refused(other_rank: Any) -> None:
    usual: Terms = {"loss": 1.0, "kl": 2.0}
    compute = Computing((usual, set()), (usual, set()), ({**usual, "rare": 5.0}, set()))
    other_rank["gather"] = ["kl", "loss", "other"]
    with pytest.raises(ValueError, match=r"loss: the terms.*rank 0 and rank 1 differ in other"):
        SharedGradient(compute, compute.flat)(OBJECTIVE, BATCH)
    del other_rank["gather"]
    shared: SharedGradient[Any] = SharedGradient(compute, compute.flat)
    shared(OBJECTIVE, BATCH)
    with pytest.raises(ValueError, match=r"the minibatches of rank 0 differ in rare"):
        shared(OBJECTIVE, BATCH)
    other_rank["gather"] = {"ratio_max": 3.0, "other": 1.0}
    with pytest.raises(ValueError, match=r"rank 0 and rank 1 differ in other"):
        minibatches.reduce_maxima({"ratio_max": Maximum(2.0)})
    other_rank["gather"] = {"ratio_max": 3.0}
    assert minibatches.reduce_maxima({"ratio_max": Maximum(2.0), "kl": 1.0}) == {"ratio_max": Maximum(3.0), "kl": 1.0}


class Double(TrustRegion):
    """Of a policy in float64."""

    size = fisher_size = 1
    surrogate, gradient = 2.0, th.ones(3, dtype=th.float64)

    def fisher(self, vector: Any) -> Any:
        return vector

    def evaluate(self) -> Any:
        return 4.0, 8.0


def test_requests_about_float64_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(leader, "gather", lambda mine: [mine])
    monkeypatch.setattr(leader, "sum_", lambda tensor: tensor)
    monkeypatch.setattr(leader, "broadcast_", lambda tensor: sent.append(tensor.clone()))
    vector = th.tensor([1 / 3, 2 / 3, 1e-300], dtype=th.float64)
    leader.SharedTrustRegion(Double(), th.zeros(3, dtype=th.float64)).fisher(vector)
    assert th.equal(sent[-1][1:], vector)


# ---------------------------------------------------------------------- state of the policy


def test_a_state_of_other_things_than_real_tensors_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[Any] = []

    def note(pair: th.Tensor) -> th.Tensor:
        digests.append(pair[0].item())
        return pair

    class Versioned(th.nn.Module):
        version = 1

        def get_extra_state(self) -> Any:
            return {"version": self.version}

        def set_extra_state(self, state: Any) -> None:
            self.version = state["version"]

    monkeypatch.setattr(one_model, "max_", note)
    model = PPO("MlpPolicy", "CartPole-v1", **SMALL)
    policy: Any = model.policy
    policy.versioned = Versioned()
    policy.register_buffer("phases", th.tensor([1 + 2j, 3 - 1j], dtype=th.complex128))
    one_model.keep_together(model)
    one_model.keep_together(model)
    assert digests[0] == digests[1]
    policy.versioned.version = 2
    one_model.keep_together(model)
    policy.phases[1] += 1e-9j
    one_model.keep_together(model)
    assert len(set(digests)) == 3


def test_a_process_group_of_the_script_is_refused_by_name(as_rank: Any) -> None:
    from torch.distributed import HashStore  # type: ignore[attr-defined]  # torch exports it without declaring it

    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        as_rank(0)
        with pytest.raises(ValueError, match=r"has a process group already.*destroy_process_group\(\) before learn"):
            group.Group()
    finally:
        dist.destroy_process_group()

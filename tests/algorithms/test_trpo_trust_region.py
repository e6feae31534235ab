"""TRPO's promise: KL(π_old‖π_θ) of each update, computed independently of the package, stays within the trust region."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from toy_environments import (
    ACTION_SPACES,
    IMAGE,
    OBSERVATION_SPACES,
    VECTOR,
    all_observations,
    collect,
    copy_rollout,
    parameter_vector,
    start,
    toy,
)

from sb3_policyopt import TRPO
from sb3_policyopt.maths.trust_region import REFUSALS

TARGET = 0.01
ARGUMENTS: dict[str, Any] = {"n_steps": 40, "batch_size": 80, "n_critic_updates": 2, "seed": 0, "device": "cpu"}


def torch_distributions(model: Any) -> list[th.distributions.Distribution]:
    """π(·|s) for the observations of the rollout, as independent torch distributions."""
    with th.no_grad():
        distribution = model.policy.get_distribution(all_observations(model)).distribution
    return distribution if isinstance(distribution, list) else [distribution]


def independent_kl(old: list[th.distributions.Distribution], model: Any) -> float:
    """E_s[KL(π_old‖π_θ)] by torch's closed forms, summed over the dimensions of the action."""
    total = 0.0
    for p, q in zip(old, torch_distributions(model), strict=True):
        kl = th.distributions.kl_divergence(p, q).double()
        total += float(kl.reshape(len(kl), -1).sum(1).mean())
    return total


def updates(model: TRPO, number: int) -> list[tuple[float, dict[str, Any]]]:
    """Train for some updates; the independent KL and the log of each."""
    model.set_random_seed(0)
    results = []
    for _ in range(number):
        collect(model)
        old = torch_distributions(model)
        model.train()
        results.append((independent_kl(old, model), dict(model.logger.name_to_value)))
    return results


def assert_within(results: list[tuple[float, dict[str, Any]]], target: float, dimensions: int = 1) -> None:
    """KL ≤ target in the sum over dimensions, most of the trust region used, and the log tells the truth."""
    kls = [kl for kl, _ in results]
    assert max(kls) <= 1.01 * target
    assert np.median(kls) > 0.3 * target
    for kl, log in results:
        assert log["train/kl_divergence_loss"] * dimensions == pytest.approx(kl, rel=0.01, abs=1e-6)
        refusals = [log[f"train/line_search_{reason}"] for reason in REFUSALS]
        assert (log["train/is_line_search_success"] == 1) == (kl > 0) == (sum(refusals) == 0)
        assert sum(refusals) in (0, 1)


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_T2_kl_of_every_update_is_within_the_trust_region(space: str, engine: str) -> None:
    model = TRPO("MlpPolicy", toy(action=ACTION_SPACES[space]), target_kl=TARGET, engine=engine, **ARGUMENTS)
    assert_within(updates(model, 6), TARGET)


OTHERS: dict[str, tuple[str, spaces.Space[Any], str, dict[str, Any]]] = {
    "gSDE": ("MlpPolicy", VECTOR, "box_6", {"use_sde": True}),
    "gSDE, squashed": ("MlpPolicy", VECTOR, "box_1", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "images": ("CnnPolicy", IMAGE, "box_1", {"n_steps": 8, "batch_size": 32, "cg_max_steps": 5}),
    "dict": ("MultiInputPolicy", OBSERVATION_SPACES["dict"], "multi_discrete", {}),
    "sub-sampled Fisher": ("MlpPolicy", VECTOR, "box_6", {"sub_sampling_factor": 4}),
    "sub-sampled Fisher, dict": ("MultiInputPolicy", OBSERVATION_SPACES["dict"], "box_1", {"sub_sampling_factor": 2}),
    "ReLU": ("MlpPolicy", VECTOR, "discrete", {"policy_kwargs": {"activation_fn": th.nn.ReLU, "net_arch": [32, 16]}}),
    "no damping": ("MlpPolicy", VECTOR, "box_6", {"cg_damping": 0.0}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_T2_kl_of_other_policies_is_within_the_trust_region(name: str) -> None:
    policy, observation, action, options = OTHERS[name]
    model = TRPO(policy, toy(observation, ACTION_SPACES[action]), target_kl=TARGET, **{**ARGUMENTS, **options})
    assert_within(updates(model, 5), TARGET)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "HalfCheetah-v5", "Humanoid-v5", "CartPole-v1"])
def test_kl_on_real_environments(env_id: str, engine: str) -> None:
    model = TRPO("MlpPolicy", gym.make(env_id), target_kl=TARGET, n_steps=1024, seed=0, device="cpu", engine=engine)
    assert_within(updates(model, 10), TARGET)


@pytest.mark.parametrize("space", ["box_6", "multi_binary", "discrete", "multi_discrete"])
def test_mean_reduction_is_the_sum_with_a_larger_bound(space: str, engine: str) -> None:
    """The mean over d dimensions is 1/d of the sum, and F/d its Fisher matrix: δ and λ for it are d·δ and d·λ for the sum."""
    d = {"box_6": 6, "multi_binary": 5}.get(space, 1)  # sb3-contrib sums the other two
    both: list[dict[str, Any]] = [
        {"kl_reduction": "mean", "target_kl": TARGET, "cg_damping": 0.1},
        {"kl_reduction": "sum", "target_kl": d * TARGET, "cg_damping": d * 0.1},
    ]
    models = [TRPO("MlpPolicy", toy(action=ACTION_SPACES[space]), engine=engine, **ARGUMENTS, **options) for options in both]
    logs = []
    for model in models:
        results = updates(model, 3)
        assert_within(results, d * TARGET, dimensions=d if model.kl_reduction == "mean" else 1)
        logs.append([log["train/kl_divergence_loss"] for _, log in results])
    assert th.equal(parameter_vector(models[0].policy), parameter_vector(models[1].policy))
    assert [d * kl for kl in logs[0]] == pytest.approx(logs[1])


@pytest.mark.parametrize("space", ["box_6", "box_17", "multi_binary", "discrete"])
def test_mean_reduction_steps_in_sb3_contribs_direction(space: str, engine: str) -> None:
    env = ACTION_SPACES[space]
    options: dict[str, Any] = {"cg_max_steps": 50, **ARGUMENTS}
    contrib = ContribTRPO("MlpPolicy", toy(action=env), target_kl=1e-4, **options)
    ours = TRPO("MlpPolicy", toy(action=env), target_kl=1e-4, kl_reduction="mean", engine=engine, **options)
    ours.policy.load_state_dict(contrib.policy.state_dict())
    start(ours)
    collect(contrib)
    copy_rollout(contrib.rollout_buffer, ours.rollout_buffer)
    steps = []
    for model in (contrib, ours):
        actor = [p for name, p in model.policy.named_parameters() if "value" not in name]
        before = th.cat([p.detach().flatten().clone() for p in actor])
        model.train()
        steps.append(th.cat([p.detach().flatten() for p in actor]) - before)
    cosine = float(th.nn.functional.cosine_similarity(steps[0], steps[1], dim=0))
    assert cosine > 0.999


def test_without_line_search_the_step_is_the_bare_scaled_one(engine: str) -> None:
    model = TRPO("MlpPolicy", toy(), engine=engine, line_search=False, target_kl=0.5, **ARGUMENTS)
    collect(model)
    old = torch_distributions(model)
    model.train()
    log = model.logger.name_to_value
    assert log["train/kl_predicted"] == pytest.approx(0.5, rel=1e-3)  # ½ΔᵀFΔ = δ (T8)
    assert log["train/step_fraction"] == 1
    # At this size the KL is not its second-order expansion; a line search would have come back.
    assert independent_kl(old, model) == pytest.approx(log["train/kl_divergence_loss"], rel=0.01)


@pytest.mark.parametrize("target", [1e-3, 1e-5])
def test_predicted_and_true_kl_agree_for_small_steps(target: float, engine: str) -> None:
    """T4: KL(θ_old‖θ_old + Δ) = ½ΔᵀFΔ + O(|Δ|³)."""
    model = TRPO(
        "MlpPolicy", toy(action=ACTION_SPACES["box_6"]), engine=engine, target_kl=target, line_search=False, **ARGUMENTS
    )
    ((kl, log),) = updates(model, 1)
    assert log["train/kl_predicted"] == pytest.approx(target, rel=1e-3)
    assert kl == pytest.approx(target, rel=0.1)


def test_a_rejected_step_leaves_the_policy_bit_for_bit(engine: str) -> None:
    """A surrogate that every step lowers: nothing can be accepted."""

    class Unimprovable(TRPO):
        def surrogate(self, batch: Any, log_prob: th.Tensor) -> th.Tensor:
            ratio = th.exp(log_prob - batch.old_log_prob)
            return -((ratio - 1) ** 2).mean() + 1e-3 * (ratio - ratio.detach()).mean()

    model = Unimprovable("MlpPolicy", toy(), engine="auto" if engine == "closed_form" else engine, **ARGUMENTS)
    collect(model)
    actor = {name: value for name, value in model.policy.named_parameters() if "value" not in name}
    before = {name: value.detach().clone() for name, value in actor.items()}
    addresses = {name: value.data_ptr() for name, value in actor.items()}
    model.train()
    log = model.logger.name_to_value
    assert log["train/is_line_search_success"] == 0
    assert log["train/line_search_no_improvement"] == 1
    assert log["train/step_fraction"] == 0 and log["train/kl_divergence_loss"] == 0
    assert log["train/surrogate_improvement"] == 0
    for name, value in actor.items():
        assert th.equal(value, before[name])
        assert value.data_ptr() == addresses[name]


def test_a_rejection_by_kl_leaves_the_policy_bit_for_bit(engine: str) -> None:
    model = TRPO("MlpPolicy", toy(), engine=engine, target_kl=5.0, line_search_max_iter=1, **ARGUMENTS)
    collect(model)
    actor = {name: value for name, value in model.policy.named_parameters() if "value" not in name}
    before = {name: value.detach().clone() for name, value in actor.items()}
    model.train()
    assert model.logger.name_to_value["train/line_search_kl_exceeded"] == 1
    assert all(th.equal(value, before[name]) for name, value in actor.items())


class CountedIdentity(th.autograd.Function):
    """The identity, which counts the backward passes through it."""

    backward_passes = 0

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        CountedIdentity.backward_passes += 1
        return gradient.clone()


class SharedExtractor(BaseFeaturesExtractor):
    """An extractor whose layer bears a name that makes sb3-contrib take it for the critic's."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=8)
        self.value_embedding = th.nn.Linear(observation_space.shape[0], 8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        identity: Any = CountedIdentity.apply
        return th.tanh(identity(self.value_embedding(observations)))


def shared_model(share: bool = True) -> TRPO:
    policy_kwargs = {"features_extractor_class": SharedExtractor, "share_features_extractor": share}
    return TRPO("MlpPolicy", toy(), policy_kwargs=policy_kwargs, n_steps=64, batch_size=64, seed=0, device="cpu")


@pytest.mark.parametrize("owned", [True, False], ids=["own memory", "memory that somebody holds"])
def test_an_interrupted_line_search_leaves_the_policy_bit_for_bit(owned: bool) -> None:
    class Interrupted(TRPO):
        interrupts = False

        def surrogate(self, batch: Any, log_prob: th.Tensor) -> Any:
            if self.interrupts and not th.is_grad_enabled():  # a candidate, whose parameters are in the policy
                raise KeyboardInterrupt
            return super().surrogate(batch, log_prob)

    model = Interrupted("MlpPolicy", toy(VECTOR, ACTION_SPACES["discrete"]), **ARGUMENTS)
    held = [] if owned else [parameter.detach().numpy() for parameter in model.policy.parameters()]
    model.learn(160)
    before, model.interrupts = parameter_vector(model.policy).clone(), True
    with pytest.raises(KeyboardInterrupt):
        model.learn(160)
    assert th.equal(parameter_vector(model.policy), before)
    assert len(held) in (0, len(list(model.policy.parameters())))


def test_an_actor_layer_named_value_embedding_trains() -> None:
    model: Any = shared_model()
    layer: Any = model.policy.features_extractor.value_embedding.weight
    before = layer.detach().clone()
    assert_within(updates(model, 3), TARGET)
    assert float((layer.detach() - before).abs().max()) > 1e-4


@pytest.mark.parametrize("share", [True, False])
def test_the_critic_never_moves_an_actor_parameter(share: bool) -> None:
    model: Any = shared_model(share)
    collect(model)
    policy_update = model.update_policy
    after_policy_update = {}

    def watched(engine: str, rollout: Any) -> dict[str, float]:
        terms = policy_update(engine, rollout)
        after_policy_update.update({name: value.detach().clone() for name, value in model.policy.named_parameters()})
        return terms

    model.update_policy = watched
    model.train()
    moved = {name for name, value in model.policy.named_parameters() if not th.equal(value, after_policy_update[name])}
    critics_own = {
        name for name in after_policy_update if name.startswith(("mlp_extractor.value_net", "value_net", "vf_feat"))
    }
    assert moved == critics_own
    assert any(name.startswith("vf_features_extractor") for name in moved) != share


def test_a_shared_extractor_costs_the_critic_no_backward_pass() -> None:
    model = shared_model()
    collect(model)
    used = model.start_update()
    data = used.data(model.rollout_buffer)
    (rollout,) = data.whole()
    model.update_policy(used, model.trust_region(used, rollout))
    CountedIdentity.backward_passes = 0
    model.update_critic(used, data)
    assert CountedIdentity.backward_passes == 0
    model.policy.predict_values(rollout.observations).sum().backward()  # type: ignore[no-untyped-call]  # torch does not type it
    assert CountedIdentity.backward_passes == 1  # the counter counts


def test_the_critic_follows_sb3_contribs(engine: str) -> None:
    """The same rollout, seed and critic give the same critic as sb3-contrib's, whatever the policy's step was."""
    contrib = ContribTRPO("MlpPolicy", toy(), **ARGUMENTS)
    ours = TRPO("MlpPolicy", toy(), engine=engine, **ARGUMENTS)
    ours.policy.load_state_dict(contrib.policy.state_dict())
    start(ours)
    collect(contrib)
    copy_rollout(contrib.rollout_buffer, ours.rollout_buffer)
    np.random.seed(0)
    ours.train()
    random: Any = np.random
    permutation = random.permutation
    shuffles: Any = []
    try:
        # sb3-contrib draws one permutation more, to put the whole rollout in a random order.
        np.random.seed(0)
        order = np.arange(contrib.rollout_buffer.buffer_size * contrib.n_envs)
        random.permutation = lambda n: shuffles.append(n) or (order if len(shuffles) == 1 else permutation(n))
        contrib.train()
    finally:
        random.permutation = permutation
    mine = dict(ours.policy.named_parameters())
    for name, value in contrib.policy.named_parameters():
        if "value" in name:
            assert th.allclose(value, mine[name], rtol=0, atol=1e-5), name
    assert ours.logger.name_to_value["train/value_loss"] == pytest.approx(
        contrib.logger.name_to_value["train/value_loss"], rel=1e-4
    )
    assert ours.logger.name_to_value.keys() >= contrib.logger.name_to_value.keys()

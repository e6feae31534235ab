"""
Faults known from other implementations, each shown to be absent here.

The numbers count the weaknesses found in Stable-Baselines3 and sb3-contrib 2.9; each test's docstring
says what goes wrong there.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, collect, parameter_vector, start, toy, updated

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.maths.conjugate_gradient import conjugate_gradient
from sb3_policyopt.maths.terms import value_of
from sb3_policyopt.maths.trust_region import backtracking_line_search

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}


def actor_parameters(model: Any) -> Any:
    return [p for name, p in model.policy.named_parameters() if "value" not in name]


def joint_kl(old: Any, model: Any, observations: Any) -> Any:
    """E_s[KL(π_old‖π_θ)] of Gaussians with (mean, std), summed over dimensions, from the textbook formula in float64."""
    mean, std = (x.double() for x in old)
    new_mean, new_std = (x.double() for x in gaussian(model, observations))
    kl = th.log(new_std / std) + (std**2 + (mean - new_mean) ** 2) / (2 * new_std**2) - 0.5
    return float(kl.sum(1).mean())


def gaussian(model: Any, observations: Any) -> Any:
    with th.no_grad():
        distribution = model.policy.get_distribution(observations).distribution
    return distribution.mean.clone(), distribution.stddev.clone()


@pytest.mark.parametrize("dimensions", [1, 6, 17])
def test_weakness_01_target_kl_bounds_the_joint_kl_of_a_box(dimensions: int, engine: str) -> None:
    """sb3-contrib averages over dimensions: its accepted steps of 17 dimensions have a joint KL of many times the target."""
    kls: dict[type[Any], list[Any]] = {}
    sides: list[tuple[Any, ...]] = [(ContribTRPO, {}), (TRPO, {"engine": engine})]
    for cls, options in sides:
        model = cls(
            "MlpPolicy", toy(action=ACTION_SPACES[f"box_{dimensions}"]), target_kl=0.01, **{**SMALL, "n_steps": 32}, **options
        )
        kls[cls] = []
        for _ in range(3):
            collect(model)
            observations = th.as_tensor(model.rollout_buffer.observations.reshape(128, -1))
            old = gaussian(model, observations)
            model.train()
            kls[cls].append(joint_kl(old, model, observations))
    assert max(kls[TRPO]) <= 0.0101
    if dimensions == 17:
        assert max(kls[ContribTRPO]) > 0.03  # the fault is still there, so that the comparison means something


def test_weakness_02_the_old_policy_comes_first_in_the_kl(engine: str) -> None:
    """sb3-contrib measures KL(new‖old). The two differ at finite steps; ours is that of the paper."""
    model = TRPO("MlpPolicy", toy(), engine=engine, target_kl=0.5, line_search=False, **SMALL)
    collect(model)
    observations = th.as_tensor(model.rollout_buffer.observations.reshape(64, -1))
    old = gaussian(model, observations)
    model.train()
    logged = model.logger.name_to_value["train/kl_divergence_loss"]
    new = gaussian(model, observations)
    forward = joint_kl(old, model, observations)
    mean, std, new_mean, new_std = (x.double() for x in (*old, *new))
    backward = float((th.log(std / new_std) + (new_std**2 + (mean - new_mean) ** 2) / (2 * std**2) - 0.5).sum(1).mean())
    assert logged == pytest.approx(forward, rel=1e-3)
    assert abs(backward - forward) > 0.02 * forward


def policy_update(model: Any, used: Any, data: Any) -> Any:
    """TRPO's policy update on the whole rollout."""
    (rollout,) = data.whole()
    return model.update_policy(used, model.trust_region(used, model.normalized(rollout)))


class ValueNamed(BaseFeaturesExtractor):
    """A shared extractor whose layer's name speaks of value."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, features_dim=8)
        self.value_embedding = th.nn.Linear(observation_space.shape[0], 8)

    def forward(self, observations: Any) -> Any:
        return th.tanh(self.value_embedding(observations))


def test_weakness_03_names_do_not_decide_what_the_actor_is() -> None:
    """sb3-contrib takes every parameter with "value" in its name for the critic's, whatever it does."""
    model: Any = TRPO("MlpPolicy", toy(), policy_kwargs={"features_extractor_class": ValueNamed}, **SMALL)
    layer: Any = model.policy.features_extractor.value_embedding.weight
    before = layer.detach().clone()
    assert updated(model)["is_line_search_success"] == 1
    after_policy = layer.detach().clone()
    assert not th.equal(before, after_policy)
    used = model.start_update()
    model.update_critic(used, used.data(model.rollout_buffer))
    assert th.equal(layer, after_policy)


def test_weakness_03_a_dict_key_named_value_on_an_image() -> None:
    """CombinedExtractor names its modules by the key."""
    space = spaces.Dict({"value_map": OBSERVATION_SPACES["image"], "vector": OBSERVATION_SPACES["box"]})
    model: Any = TRPO("MultiInputPolicy", toy(space), **{**SMALL, "n_steps": 8, "cg_max_steps": 3})
    convolution = model.policy.features_extractor.extractors["value_map"].cnn[0].weight
    before = convolution.detach().clone()
    collect(model)
    used = model.start_update()
    data = used.data(model.rollout_buffer)
    assert policy_update(model, used, data)["is_line_search_success"] == 1
    moved = convolution.detach().clone()
    assert not th.equal(before, moved)
    model.update_critic(used, data)
    assert th.equal(convolution, moved)


def test_weakness_04_the_critic_pays_no_backward_pass_for_what_it_cannot_train() -> None:
    """sb3-contrib differentiates the value loss through a shared extractor and throws the gradient away."""
    model: Any = TRPO("MlpPolicy", toy(), policy_kwargs={"features_extractor_class": ValueNamed}, **SMALL)
    collect(model)
    used = model.start_update()
    data = used.data(model.rollout_buffer)
    passes: Any = []
    model.policy.features_extractor.value_embedding.weight.register_hook(lambda gradient: passes.append(gradient))
    model.update_critic(used, data)
    assert passes == []
    # PPO, which may train it with both losses, does.
    ppo: Any = PPO(
        "MlpPolicy",
        toy(),
        policy_kwargs={"features_extractor_class": ValueNamed},
        **{**SMALL, "n_epochs": 1, "batch_size": 64},
    )
    collect(ppo)
    ppo.policy.features_extractor.value_embedding.weight.register_hook(lambda gradient: passes.append(gradient))
    ppo.train()
    assert len(passes) == 1


def test_weakness_05_sub_sampling_works_with_dict_observations_and_thins_only_the_fisher_matrix(engine: str) -> None:
    """sb3-contrib crashes on Dict observations ("unhashable type: 'slice'"), and thins gradient, KL and line search too."""
    model = TRPO("MultiInputPolicy", toy(OBSERVATION_SPACES["dict"]), sub_sampling_factor=4, **SMALL)
    assert updated(model)["is_line_search_success"] == 1

    regions = []
    for factor in (1, 4):
        model = TRPO("MlpPolicy", toy(), engine=engine, sub_sampling_factor=factor, **SMALL)
        collect(model)
        used = model.start_update()
        (rollout,) = used.data(model.rollout_buffer).whole()
        regions.append(model.trust_region(used, model.normalized(rollout)))
    whole, thinned = regions
    assert whole.surrogate == thinned.surrogate
    assert th.equal(whole.gradient, thinned.gradient)
    v = th.randn(len(whole.gradient), generator=th.Generator().manual_seed(0))
    assert not th.allclose(whole.fisher(v), thinned.fisher(v))


class PoisonedTRPO(TRPO):
    """A surrogate whose gradient is NaN once ``poison`` is set."""

    poison = True

    def surrogate(self, batch: Any, log_prob: Any) -> Any:
        return super().surrogate(batch, log_prob) * (float("nan") if self.poison else 1.0)


def test_weakness_06_a_non_finite_direction_leaves_the_policy_alone() -> None:
    """sb3-contrib writes NaN into the parameters, then raises before it would restore them."""
    model = PoisonedTRPO("MlpPolicy", toy(), **SMALL)
    collect(model)
    before = [p.detach().clone() for p in actor_parameters(model)]
    model.train()
    assert model.logger.name_to_value["train/is_line_search_success"] == 0
    assert model.logger.name_to_value["train/line_search_non_finite"] == 1
    assert all(th.equal(p, q) for p, q in zip(actor_parameters(model), before, strict=True))
    model.poison = False
    assert updated(model)["is_line_search_success"] == 1


def test_weakness_06_a_zero_gradient_is_no_division_by_zero(engine: str) -> None:
    """sb3-contrib raises ZeroDivisionError or steps along noise."""
    model = TRPO("MlpPolicy", toy(), engine=engine, normalize_advantage=False, **SMALL)
    collect(model)
    model.rollout_buffer.advantages[...] = 0
    before = [p.detach().clone() for p in actor_parameters(model)]
    model.train()
    assert model.logger.name_to_value["train/line_search_zero_step"] == 1
    assert all(th.equal(p, q) for p, q in zip(actor_parameters(model), before, strict=True))


def test_weakness_07_conjugate_gradient_draws_no_random_number_and_wastes_no_product(engine: str) -> None:
    """sb3-contrib starts from 1e-4·randn: one more product, the global generator advanced, noise as direction where b ≈ 0."""
    model = TRPO("MlpPolicy", toy(), engine=engine, cg_max_steps=5, **SMALL)
    collect(model)
    used = model.start_update()
    (rollout,) = used.data(model.rollout_buffer).whole()
    region: Any = model.trust_region(used, model.normalized(rollout))
    products: Any = []
    fisher = region.fisher
    region.fisher = lambda v: products.append(1) or fisher(v)
    torch_state, numpy_state = th.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    log = model.update_policy(used, region)
    assert th.equal(th.get_rng_state(), torch_state) and np.array_equal(
        np.random.get_state(legacy=False)["state"]["key"], numpy_state
    )
    assert len(products) == value_of(log["cg_iterations"]) + 1 == 6  # one for each iteration, one for the scale (T8)

    matrix = th.diag(th.tensor([1.0, 10.0, 100.0]))
    b = th.tensor([1.0, -2.0, 3.0])
    for scale in (1.0, 1e-12):
        result = conjugate_gradient(lambda v: matrix @ v, scale * b)
        assert result.status == "converged"
        th.testing.assert_close(result.x / scale, th.tensor([1.0, -0.2, 0.03]), rtol=1e-4, atol=0)
    indefinite = conjugate_gradient(lambda v: -v, b)
    assert indefinite.status == "not_positive" and not indefinite.x.any()


def test_weakness_08_a_refusal_says_why(engine: str) -> None:
    """sb3-contrib reports a KL of 0 and no reason."""
    model = TRPO("MlpPolicy", toy(), engine=engine, target_kl=5.0, line_search_max_iter=1, **SMALL)
    assert updated(model)["line_search_kl_exceeded"] == 1
    x = th.zeros(1)
    for values, reason in [((1.0, 9.0), "kl_exceeded"), ((0.0, 0.1), "no_improvement"), ((float("nan"), 0.1), "non_finite")]:

        def evaluate(values: tuple[float, float] = values) -> tuple[float, float]:
            return values

        result = backtracking_line_search(x, th.ones(1), evaluate, surrogate_before=0.5, delta=1.0)
        assert result.reason == reason and result.fraction == 0 and x.item() == 0


@pytest.mark.parametrize("layer", [th.nn.Dropout(0.5), th.nn.BatchNorm1d(4)], ids=["dropout", "batch_norm"])
def test_weakness_09_trpo_compares_a_policy_with_itself(layer: Any) -> None:
    """sb3-contrib updates in training mode: with dropout or batch statistics π_θ differs from itself."""

    class Noisy(BaseFeaturesExtractor):
        def __init__(self, observation_space: Any) -> None:
            super().__init__(observation_space, features_dim=4)
            self.layer, self.linear = layer, th.nn.Linear(4, 4)

        def forward(self, observations: Any) -> Any:
            return self.linear(self.layer(observations))

    model = TRPO("MlpPolicy", toy(), policy_kwargs={"features_extractor_class": Noisy}, **SMALL)
    collect(model)
    buffers = [b.clone() for b in model.policy.buffers()]
    used = model.start_update()
    log = policy_update(model, used, used.data(model.rollout_buffer))
    assert not model.policy.training
    assert all(th.equal(b, before) for b, before in zip(model.policy.buffers(), buffers, strict=True))
    assert log["is_line_search_success"] == 1 and 0 < log["kl_divergence_loss"] <= 0.01


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_weakness_10_parameters_keep_their_storage(cls: type[Any], engine: str) -> None:
    """sb3-contrib rebinds ``param.data``, which breaks whatever holds the address: shared memory, compiled graphs."""
    model = cls("MlpPolicy", toy(), engine=engine, **SMALL)
    model.learn(64)
    addresses = [p.data_ptr() for p in model.policy.parameters()]
    before = parameter_vector(model.policy)
    model.learn(128)
    assert [p.data_ptr() for p in model.policy.parameters()] == addresses
    assert not th.equal(parameter_vector(model.policy), before)


class Bias(BaseFeaturesExtractor):
    """Ignores its observation, and adds its bias linearly: its second derivative is None in a naive product."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, features_dim=3)
        self.bias = th.nn.Parameter(th.ones(3))

    def forward(self, observations: Any) -> Any:
        return self.bias.expand(len(observations), 3)


def test_weakness_11_a_missing_second_derivative_is_a_zero() -> None:
    """sb3-contrib's flat_grad drops it, and vectors of unequal length meet in an obscure error."""
    options: dict[str, Any] = {"features_extractor_class": Bias, "net_arch": []}
    model = TRPO("MlpPolicy", toy(), policy_kwargs=options, **SMALL)
    assert updated(model)["is_line_search_success"] == 1


def test_weakness_12_trpo_takes_schedules(engine: str) -> None:
    """sb3-contrib's target_kl is a float for the whole training."""
    model = TRPO("MlpPolicy", toy(), engine=engine, target_kl=lambda progress: 0.02 * progress, **SMALL)
    start(model)
    model._current_progress_remaining = 0.25
    assert updated(model)["target_kl"] == pytest.approx(0.005)


def test_weakness_13_and_15_backward_and_forward_passes_of_one_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """sb3-contrib makes two full backward passes for every actor tensor, and two forward passes for the same numbers."""
    model: Any = TRPO("MlpPolicy", toy(), engine="autograd", cg_max_steps=4, **SMALL)
    collect(model)
    used: Any = model.start_update()
    data = used.data(model.rollout_buffer)
    backwards: Any = []
    forwards: Any = []
    calls: Any = []
    grad, get_distribution, search = th.autograd.grad, model.policy.get_distribution, used.surrogate_and_kl
    monkeypatch.setattr(th.autograd, "grad", lambda *a, **k: backwards.append(1) or grad(*a, **k))
    model.policy.get_distribution = lambda obs: forwards.append(1) or get_distribution(obs)
    used.surrogate_and_kl = lambda *a: calls.append(1) or search(*a)
    log = policy_update(model, used, data)
    # g, the slopes of the KL and Jᵀu; for each Fisher product (one an iteration and one for the scale) J, M and Jᵀ
    assert len(backwards) == 3 + 3 * (log["cg_iterations"] + 1)
    assert len(forwards) == 1 + len(calls)  # and one for each candidate of the line search


def test_weakness_14_memory_is_bounded_by_micro_batches() -> None:
    """sb3-contrib puts the whole rollout through the network at once, graph and all."""
    sizes = []

    class Noting(ValueNamed):
        def forward(self, observations: Any) -> Any:
            sizes.append(len(observations))
            return super().forward(observations)

    for cls in (TRPO, PPO):
        model = cls("MlpPolicy", toy(), policy_kwargs={"features_extractor_class": Noting}, micro_batch_size=10, **SMALL)
        collect(model)
        sizes.clear()
        model.train()
        assert sizes and max(sizes) == 10

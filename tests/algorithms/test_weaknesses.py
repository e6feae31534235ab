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
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch.utils._python_dispatch import TorchDispatchMode
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, collect, copy_rollout, parameter_vector, start, toy

from sb3_policyopt import PPO, TRPO, NonFiniteError
from sb3_policyopt.maths import losses
from sb3_policyopt.maths.conjugate_gradient import conjugate_gradient
from sb3_policyopt.maths.terms import value_of
from sb3_policyopt.maths.trust_region import backtracking_line_search
from sb3_policyopt.objectives import Objective

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}


def actor_parameters(model: Any) -> Any:
    return [p for name, p in model.policy.named_parameters() if "value" not in name]


def updated(model: Any) -> Any:
    """Collect a rollout, update, return the log."""
    collect(model)
    model.train()
    return {name.removeprefix("train/"): value for name, value in model.logger.name_to_value.items()}


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

"""A subclass changes what is optimised by one small method, and everything it uses trains."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from toy_environments import OBSERVATION_SPACES, collect, parameter_vector, toy

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.maths.terms import Terms
from sb3_policyopt.models import choose_model
from sb3_policyopt.objectives import Objective
from sb3_policyopt.setup.hooks import refuse_hooks_of_others

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}


class SamePPO(PPO):
    """Overrides without changing anything, which sends the computation to autograd."""

    def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, dict[str, Any]]:
        return super().loss(batch, coefficients)


class SameTRPO(TRPO):
    """Likewise."""

    def surrogate(self, batch: Any, log_prob: th.Tensor) -> th.Tensor:
        return super().surrogate(batch, log_prob)

    def value_loss(self, batch: Any) -> tuple[th.Tensor, Terms]:
        return super().value_loss(batch)


@pytest.mark.parametrize(("cls", "sub"), [(PPO, SamePPO), (TRPO, SameTRPO)])
def test_an_override_is_honoured_and_both_engines_agree(cls: type[Any], sub: type[Any]) -> None:
    plain = cls("MlpPolicy", toy(), engine="autograd", **SMALL).learn(64)
    overridden = sub("MlpPolicy", toy(), **SMALL).learn(64)
    assert overridden.engine_in_use.name == "autograd"
    assert th.equal(parameter_vector(plain.policy), parameter_vector(overridden.policy))
    with pytest.raises(ValueError, match=r"closed_form.*overridden"):
        sub("MlpPolicy", toy(), engine="closed_form", **SMALL).learn(64)


def test_a_hook_may_be_replaced_on_the_object() -> None:
    model: Any = PPO("MlpPolicy", toy(), **SMALL)
    original = model.loss
    calls: Any = []
    model.loss = lambda *arguments: calls.append(1) or original(*arguments)
    model.learn(64)
    assert len(calls) == 10 * 2


class FromScratch(PPO):
    """Logs one term, with its graph, and no "approx_kl"."""

    def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, dict[str, Any]]:
        values, log_prob, _ = self.policy.evaluate_actions(batch.observations, batch.actions)
        loss = -(log_prob * batch.advantages).mean() + (values.flatten() - batch.returns).pow(2).mean()
        return loss, {"mine": loss}


@pytest.mark.parametrize("micro_batch_size", [None, 16])
def test_a_loss_from_scratch_may_log_what_it_likes(micro_batch_size: int | None) -> None:
    model = FromScratch("MlpPolicy", toy(), micro_batch_size=micro_batch_size, **SMALL).learn(64)
    log = model.logger.name_to_value
    assert log["train/mine"] == pytest.approx(log["train/loss"])
    with pytest.raises(ValueError, match="target_kl needs 'approx_kl' among the terms that loss"):
        FromScratch("MlpPolicy", toy(), target_kl=0.01, **SMALL).learn(64)


class HeadPolicy(ActorCriticPolicy):
    """A policy with a further head, which neither actions nor values depend on."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        assert self.observation_space.shape is not None
        self.next_observation = th.nn.Linear(self.mlp_extractor.latent_dim_pi, self.observation_space.shape[0])
        make: Any = self.optimizer_class  # Any: each optimizer has its own arguments
        self.optimizer = make(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


class PredictingPPO(PPO):
    """Also predicts the negated observation from the actor's features, as a stand-in for any auxiliary task."""

    def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, dict[str, Any]]:
        loss, terms = super().loss(batch, coefficients)
        policy: Any = self.policy
        features = policy.mlp_extractor.forward_actor(policy.extract_features(batch.observations))
        error = ((policy.next_observation(features) + batch.observations) ** 2).mean()
        return loss + error, {**terms, "prediction_error": error.detach()}


@pytest.mark.parametrize("micro_batch_size", [None, 8])
def test_a_head_that_only_the_loss_uses_is_trained(micro_batch_size: int | None) -> None:
    model = PredictingPPO(HeadPolicy, toy(), learning_rate=3e-3, micro_batch_size=micro_batch_size, **SMALL)
    errors = []
    for _ in range(4):
        collect(model)
        model.train()
        errors.append(model.logger.name_to_value["train/prediction_error"])
    assert errors[-1] < 0.5 * errors[0]


def test_its_gradient_is_that_of_one_minibatch() -> None:
    """Nothing of the minibatch before is left in it: with a learning rate of zero each pass gives the same gradient."""
    model: Any = PredictingPPO(HeadPolicy, toy(), learning_rate=1e-3, **SMALL)
    collect(model)
    used = model.start_update()
    (rollout,) = used.data(model.rollout_buffer).whole()
    objective, gradients = Objective.of(model.loss, model.current_coefficients()), []
    with used.updating(64):
        for _ in range(2):
            used.gradient(objective, model.normalized(rollout))
            gradients.append(model.policy.next_observation.weight.grad.clone())
    assert th.equal(*gradients) and gradients[0].abs().max() > 0


class EntropyTRPO(TRPO):
    """The surrogate with an entropy bonus."""

    def surrogate(self, batch: Any, log_prob: th.Tensor) -> th.Tensor:
        entropies = self.policy.get_distribution(batch.observations).entropy()
        assert entropies is not None
        entropy = entropies.mean()
        return super().surrogate(batch, log_prob) + 100 * entropy


def test_trpo_maximises_what_the_hook_says() -> None:
    """With a huge entropy bonus the standard deviation grows at every step."""
    model = EntropyTRPO("MlpPolicy", toy(), **SMALL)
    stds = []
    for _ in range(3):
        collect(model)
        model.train()
        log = model.logger.name_to_value
        assert log["train/is_line_search_success"] == 1 and log["train/surrogate_improvement"] > 0
        stds.append(log["train/std"])
    assert 1 < stds[0] < stds[1] < stds[2]


class HuberTRPO(TRPO):
    """A critic with another loss, which logs what it likes."""

    def value_loss(self, batch: Any) -> tuple[th.Tensor, Terms]:
        values = self.policy.predict_values(batch.observations).flatten()
        loss = th.nn.functional.smooth_l1_loss(values, batch.returns)
        return loss, {"value_loss": loss.detach(), "value_mean": values.mean().detach()}


def test_trpo_fits_what_the_hook_says() -> None:
    model = HuberTRPO("MlpPolicy", toy(), **SMALL)
    collect(model)
    returns = model.rollout_buffer.returns.copy()
    values = model.rollout_buffer.values.copy()
    model.n_critic_updates, model.batch_size = 1, 64
    model.train()
    expected = th.nn.functional.smooth_l1_loss(th.as_tensor(values), th.as_tensor(returns))
    log = model.logger.name_to_value
    assert log["train/value_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert log["train/value_mean"] == pytest.approx(float(np.mean(values)), rel=1e-3, abs=1e-5)


def test_a_policy_with_its_own_methods_goes_to_autograd() -> None:
    class Custom(ActorCriticPolicy):
        def predict_values(self, obs: Any) -> Any:
            return 2 * super().predict_values(obs)

    model = PPO(Custom, toy(), **SMALL)
    assert choose_model(model.policy, "auto", None).name == "autograd"
    assert choose_model(PPO("MlpPolicy", toy(), **SMALL).policy, "auto", None).name == "closed_form"


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
def test_an_objective_without_slopes_that_is_no_hook_is_refused_with_what_to_do(policy: str) -> None:
    """The closed form would not know what to compute: an algorithm of somebody's has not named its method in ``hooks``."""
    model = PPO(policy, toy(OBSERVATION_SPACES["dict" if policy == "MultiInputPolicy" else "box"]), **SMALL)
    collect(model)
    used = model.start_update()
    assert used.name == {"MlpPolicy": "closed_form", "MultiInputPolicy": "hybrid"}[policy]
    objective = Objective(lambda batch: (model.policy.predict_values(batch.observations).mean(), {}))
    batch = next(used.data(model.rollout_buffer).minibatches(8, False))
    with used.updating(8), pytest.raises(ValueError, match=r"without slopes.*`hooks`"):
        used.gradient(objective, batch)


class DetachedPPO(PPO):
    def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, Terms]:
        value, terms = super().loss(batch, coefficients)
        return value.detach(), terms


class DetachedTRPO(TRPO):
    def surrogate(self, batch: Any, log_prob: th.Tensor) -> th.Tensor:
        return super().surrogate(batch, log_prob.detach())


class DetachedCritic(TRPO):
    def value_loss(self, batch: Any) -> tuple[th.Tensor, Terms]:
        value, terms = super().value_loss(batch)
        return value.detach(), terms


@pytest.mark.parametrize("algorithm", [DetachedPPO, DetachedTRPO, DetachedCritic])
def test_a_hook_that_detaches_is_refused_as_it_would_train_nothing(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", toy(), n_steps=16, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match="depends on no parameter that is trained"):
        model.learn(64)


@pytest.mark.parametrize(
    ("algorithm", "frozen"),
    [(DetachedTRPO, ("policy_net", "action_net", "log_std")), (DetachedCritic, ("value_net",))],
)
def test_where_the_network_is_frozen_there_is_nothing_to_refuse(algorithm: Any, frozen: tuple[str, ...]) -> None:
    model = algorithm("MlpPolicy", toy(), n_steps=16, batch_size=16, device="cpu")
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    before = parameter_vector(model.policy)
    model.learn(64)
    assert not th.equal(parameter_vector(model.policy), before)


@pytest.mark.parametrize("name", ["hessian_vector_product", "_compute_actor_grad"])
def test_a_method_of_contribs_trpo_that_would_never_be_called_is_refused(name: str) -> None:
    from sb3_contrib import TRPO as Contrib

    assert hasattr(Contrib, name)
    algorithm = type("MyTRPO", (TRPO,), {name: lambda self: None})
    with pytest.raises(ValueError, match=rf"MyTRPO\.{name}.*trust_region"):
        algorithm("MlpPolicy", toy())


@pytest.mark.parametrize(
    ("base", "name", "instead"),
    [(TRPO, "loss", "surrogate or value_loss"), (PPO, "surrogate", "loss"), (PPO, "value_loss", "loss")],
)
def test_a_hook_of_the_other_algorithm_would_never_be_called_and_is_refused(base: Any, name: str, instead: str) -> None:
    algorithm = type("Mine", (base,), {name: lambda self, batch, other=None: None})
    further = type("Further", (algorithm,), {})
    for refused in (algorithm, further):
        rule = rf"{refused.__name__}\.{name}\(\) is a hook.*{base.__name__} has no {name}; override {instead}\."
        with pytest.raises(ValueError, match=rule):
            refused("MlpPolicy", toy(), **SMALL)


def test_a_helper_with_the_name_of_the_others_hook_is_left_alone() -> None:
    """Where it is no method, or the class names it among its own hooks."""
    functions = {"loss": th.nn.MSELoss(), "surrogate": None, "value_loss": staticmethod(th.nn.functional.mse_loss)}
    for base in (PPO, TRPO):
        others: Any = {name: value for name, value in functions.items() if name not in base.hooks}
        type("Helped", (base,), others)("MlpPolicy", toy(), **SMALL).learn(32)
    named = type("Named", (TRPO,), {"loss": lambda self: None, "hooks": (*TRPO.hooks, "loss")})
    assert named("MlpPolicy", toy(), **SMALL).learn(32).engine_in_use.name == "autograd"


def test_a_helper_of_a_loss_or_of_an_update_may_have_any_name() -> None:
    """As in subclasses that were written for SB3."""

    class WithHelper(SamePPO):
        """Its loss may call the helper."""

        def value_loss(self, batch: Any) -> None:
            raise AssertionError

    class WithUpdate(TRPO):
        """Its update may call the helper."""

        def loss(self, batch: Any) -> None:
            raise AssertionError

        def train(self) -> None:
            super().train()

    of_the_same_name = type("PPO", (WithHelper,), {})
    for algorithm in (WithHelper, WithUpdate, of_the_same_name):
        algorithm("MlpPolicy", toy(), **SMALL).learn(32)


def test_a_class_that_inherits_both_algorithms_may_define_the_hooks_of_both() -> None:
    class Both(PPO, TRPO):  # type: ignore[misc]  # their train() differs
        """Updates as PPO does."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            refuse_hooks_of_others(type(self), PPO)

    class Further(Both):
        """With hooks of its own."""

        def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, Terms]:
            return super().loss(batch, coefficients)

        def surrogate(self, batch: Any, log_prob: th.Tensor) -> th.Tensor:
            return super().surrogate(batch, log_prob)

    Both(), Further()

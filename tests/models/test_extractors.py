"""T5: J and Jᵀ through SB3's extractors layer by layer, against torch's derivatives of the policy itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from torch import nn
from toy_environments import ACTION_SPACES, VECTOR, toy

from sb3_policyopt import TRPO
from sb3_policyopt.models import choice
from sb3_policyopt.models.closed_form_tensors import TensorClosedForm
from sb3_policyopt.models.extractors import ExtractedPass, are_known
from sb3_policyopt.models.torch_policy import TorchPass
from sb3_policyopt.objectives.trust_region import fisher_product

IMAGE = spaces.Box(0, 255, (2, 36, 36), np.uint8)
OBSERVATIONS: dict[str, tuple[str, Any]] = {
    "image": ("CnnPolicy", IMAGE),
    "vector": ("MlpPolicy", VECTOR),
    "dict": ("MultiInputPolicy", spaces.Dict({"vector": VECTOR, "image": IMAGE, "kind": spaces.Discrete(3)})),
    "two images": ("MultiInputPolicy", spaces.Dict({"left": IMAGE, "right": IMAGE})),
}


def freeze(*names: str) -> Callable[[Any], None]:
    def change(policy: Any) -> None:
        for name, parameter in policy.named_parameters():
            if any(part in name for part in names):
                parameter.requires_grad_(False)

    return change


def nothing(policy: Any) -> None:
    """Leave the policy as it is."""


def without_bias(policy: Any) -> None:
    cnn = policy.features_extractor.cnn
    cnn[2] = nn.Conv2d(32, 64, 4, 2, padding=1, padding_mode="reflect", bias=False)
    cnn[4] = nn.Conv2d(64, 64, 3, 1)
    policy.features_extractor.linear = nn.Sequential(nn.LazyLinear(512), nn.ReLU(inplace=True))
    policy.features_extractor(th.zeros(1, *IMAGE.shape))


def model_on(observations: str, action: str, change: Callable[[Any], None] = nothing, **policy_kwargs: Any) -> Any:
    policy, space = OBSERVATIONS[observations]
    model = TRPO(policy, toy(space, ACTION_SPACES[action]), n_steps=24, batch_size=24, seed=0, policy_kwargs=policy_kwargs)
    change(model.policy)
    model.policy.optimizer = th.optim.Adam([p for p in model.policy.parameters() if p.requires_grad], 1e-3)
    return model


def passes_of(model: Any) -> tuple[Any, Any, Any]:
    """After a rollout: the pass layer by layer, torch's, and the engine."""
    model.learn(24 * model.n_envs)
    engine = model.start_update()
    (batch,) = engine.data(model.rollout_buffer).whole()
    return engine.actor_pass(batch), engine.torch.actor_pass(batch), engine


def relative(found: th.Tensor, expected: th.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("action", ["discrete", "box_1"])
@pytest.mark.parametrize("observations", ["image", "dict", pytest.param("two images", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(nothing, id="as it is"),
        pytest.param(freeze("features_extractor"), id="frozen extractor"),
        pytest.param(freeze("cnn.0.weight", "linear.0.bias"), id="some frozen"),
    ],
)
def test_T5_equals_torch(observations: str, action: str, change: Any) -> None:
    ours, theirs, engine = passes_of(model_on(observations, action, change))
    assert type(ours) is ExtractedPass and type(theirs) is TorchPass and engine.name == "hybrid"
    generator = th.Generator().manual_seed(0)
    v = th.randn(engine.n_actor, generator=generator)
    output, moved, expected = ours.parameters[0], ours.pushforward(v)[0], theirs.parameters[0].detach()
    u = th.randn(output.shape, generator=generator)
    if action == "discrete":  # torch's logits are ln p, ours what they are made of, up to a number for each row
        p = expected.exp()
        output, moved, u = output.log_softmax(1), moved - (p * moved).sum(1, keepdim=True), u - u.mean(1, keepdim=True)
        assert relative(ours.pullback((u,)), theirs.pullback((u,))) < 1e-4
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
    assert relative(moved, theirs.pushforward(v)[0]) < 1e-4
    products = [fisher_product(forward, 24)(v) for forward in (ours, theirs)]
    assert relative(*products) < 1e-4 and float(products[0].abs().max()) > 0
    assert relative(fisher_product(ours, 24)(v), products[0]) == 0  # and again


def test_T5_layers_of_other_sizes_and_kinds() -> None:
    ours, theirs, engine = passes_of(model_on("image", "discrete", without_bias))
    assert type(ours) is ExtractedPass
    v = th.randn(engine.n_actor, generator=th.Generator().manual_seed(0))
    assert relative(*(fisher_product(forward, 24)(v) for forward in (ours, theirs))) < 1e-4


def flattens_into_layers(policy: Any) -> None:
    policy.features_extractor.flatten = nn.Sequential(nn.Flatten(), nn.Linear(VECTOR.shape[0], VECTOR.shape[0]))


def test_T5_layers_in_a_flatten_extractor() -> None:
    """Their parameters move the outputs, too."""
    ours, theirs, engine = passes_of(model_on("vector", "discrete", flattens_into_layers))
    assert type(ours) is ExtractedPass
    v = th.zeros(engine.n_actor)
    v[: VECTOR.shape[0] * (VECTOR.shape[0] + 1)] = 1  # the extractor's alone
    products = [fisher_product(forward, 24)(v) for forward in (ours, theirs)]
    assert relative(*products) < 1e-4 and float(products[1].abs().max()) > 0


def test_T5_the_actors_own_extractor() -> None:
    ours, theirs, engine = passes_of(model_on("image", "box_1", share_features_extractor=False, net_arch=[16]))
    v = th.randn(engine.n_actor, generator=th.Generator().manual_seed(0))
    assert type(ours) is ExtractedPass
    assert relative(*(fisher_product(forward, 24)(v) for forward in (ours, theirs))) < 1e-4


@pytest.mark.parametrize("observations", ["image", "dict"])
def test_T5_as_on_a_gpu(observations: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: True)
    model = model_on(observations, "discrete")
    ours, theirs, engine = passes_of(model)
    v = th.randn(engine.n_actor, generator=th.Generator().manual_seed(0))
    assert type(engine) is TensorClosedForm and type(ours) is ExtractedPass
    assert relative(*(fisher_product(forward, 24)(v) for forward in (ours, theirs))) < 1e-4
    (batch,) = engine.data(model.rollout_buffer).whole()
    found, expected = (one.surrogate_pass(model.surrogate, batch)[1] for one in (engine, engine.torch))
    assert relative(found, expected) < 1e-4


class Own(NatureCNN):
    """Of a user."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).square()


def hooked(policy: Any) -> None:
    policy.features_extractor.cnn[1].register_forward_hook(lambda module, inputs, output: output * 0.5)


def replaced(policy: Any) -> None:
    conv = policy.features_extractor.cnn[0]
    conv.forward = lambda x: 2 * type(conv).forward(conv, x)


def other_module(policy: Any) -> None:
    policy.features_extractor.cnn[1] = nn.LeakyReLU(0.5)


def other_convolution(policy: Any) -> None:
    conv = policy.features_extractor.cnn[0]
    own = conv._conv_forward
    conv._conv_forward = lambda x, weight, bias: own(x, weight - weight.mean(), bias)


def called(policy: Any) -> None:
    """What torch's ``__call__`` of every module calls."""
    cnn = policy.features_extractor.cnn
    cnn._call_impl = lambda x: 0.5 * type(cnn).forward(cnn, x)


def computed_weight(policy: Any) -> None:
    conv = policy.features_extractor.cnn[0]
    weight = nn.Parameter(conv.weight.detach())
    del conv.weight
    conv.register_parameter("root", weight)
    conv.weight = weight**3


def normed(policy: Any) -> None:
    th.nn.utils.parametrizations.weight_norm(policy.features_extractor.cnn[0])


@pytest.mark.parametrize("change", [hooked, replaced, called, other_convolution, other_module, normed, Own])
def test_what_is_not_known_is_left_to_torch(change: Any) -> None:
    options = {"features_extractor_class": Own} if change is Own else {}
    model = model_on("image", "discrete", nothing if change is Own else change, **options)
    extractor: BaseFeaturesExtractor = model.policy.features_extractor
    assert not are_known([extractor])
    forward, _, engine = passes_of(model)
    assert type(forward) is TorchPass and engine.name == "hybrid"


def test_a_weight_that_is_computed_is_not_known() -> None:
    model = model_on("image", "discrete")
    assert are_known([model.policy.features_extractor])
    computed_weight(model.policy)
    assert not are_known([model.policy.features_extractor])


def test_a_chain_above_a_combined_extractor_is_left_to_torch() -> None:
    class Chain(nn.Sequential):
        pass

    def make(space: Any) -> nn.Sequential:
        combined = CombinedExtractor(space)
        chain = nn.Sequential(combined, nn.Linear(combined.features_dim, 8), nn.ReLU())
        chain.features_dim = 8  # type: ignore[assignment]
        return chain

    model = model_on("dict", "discrete", features_extractor_class=make)
    forward, theirs, engine = passes_of(model)
    v = th.randn(engine.n_actor, generator=th.Generator().manual_seed(0))
    assert type(forward) is TorchPass and relative(*(fisher_product(one, 24)(v) for one in (forward, theirs))) < 1e-4
    assert not are_known([Chain()]) and are_known([nn.Sequential(nn.Flatten(), nn.Linear(3, 2))])


@pytest.mark.parametrize("policy", ["image", "vector"])
def test_a_hook_of_all_modules_is_honoured(policy: str) -> None:
    model: Any = (
        model_on("image", "discrete")
        if policy == "image"
        else TRPO("MlpPolicy", toy(VECTOR, ACTION_SPACES["discrete"]), n_steps=24, batch_size=24, seed=0)
    )
    model.learn(24)
    assert model.engine_in_use.name in ("hybrid", "closed_form")
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 0.5 if isinstance(module, (nn.ReLU, nn.Tanh)) else None
    )
    try:
        model.learn(24, reset_num_timesteps=False)
        assert model.engine_in_use.name == "autograd" and "hook of all modules" in model.engine_in_use.reason
    finally:
        handle.remove()
    model.learn(24, reset_num_timesteps=False)
    assert model.engine_in_use.name in ("hybrid", "closed_form")


def test_a_method_replaced_on_torchs_class_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_on("image", "discrete")
    assert are_known([model.policy.features_extractor])
    original = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *arguments: 2 * original(*arguments))
    model.learn(24)
    assert model.engine_in_use.name == "autograd"


def test_memory_above_images_is_left_to_torch() -> None:
    """The states are as many as the features, so that a network given the one for the other would not notice."""
    pytest.importorskip("sb3_contrib")
    small = {"lstm_hidden_size": 32, "features_extractor_kwargs": {"features_dim": 32}}
    env = toy(IMAGE, ACTION_SPACES["discrete"])
    model: Any = TRPO("CnnLstmPolicy", env, n_steps=24, batch_size=24, seed=0, policy_kwargs=small)
    ours, theirs, engine = passes_of(model)
    assert engine.name == "hybrid" and are_known([model.policy.features_extractor])
    v = th.randn(engine.n_actor, generator=th.Generator().manual_seed(0))
    assert relative(*(fisher_product(forward, 24)(v) for forward in (ours, theirs))) < 1e-5
    (batch,) = engine.data(model.rollout_buffer).whole()
    surrogate, gradient, _ = engine.surrogate_pass(model.surrogate, batch)
    expected = engine.torch.surrogate_pass(model.surrogate, batch)
    assert surrogate == pytest.approx(expected[0], abs=1e-6) and relative(gradient, expected[1]) < 1e-5

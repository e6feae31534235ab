"""Images lie channels last in memory where SB3's own convolutions take them, which is faster; the numbers are the same."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn
from toy_environments import ACTION_SPACES, VECTOR, collect, copy_rollout, parameter_vector, start, toy

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.models.channels_last import to_channels_last

SMALL: dict[str, Any] = {"n_steps": 4, "batch_size": 8, "seed": 0, "device": "cpu"}
FEW: dict[type[Any], dict[str, Any]] = {PPO: {"n_epochs": 1}, TRPO: {"cg_max_steps": 3, "n_critic_updates": 1}}


def image(channels: int) -> spaces.Space[Any]:
    return spaces.Box(0, 255, (36, 36, channels), np.uint8)


class RowsCNN(NatureCNN):
    """A user's extractor that looks at its input as rows of numbers, which torch allows in the usual order alone."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        assert observations.view(len(observations), -1).shape[1] == observations[0].numel()
        return super().forward(observations)


class Rows(nn.Module):
    """Looks at images as rows of numbers."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x + 0 * x.view(len(x), -1).mean()


def rows_by_a_hook(cnn: nn.Sequential) -> None:
    cnn[0].register_forward_hook(lambda _module, _input, output: output + 0 * output.view(len(output), -1).mean())


def rows_by_a_module(cnn: nn.Sequential) -> None:
    cnn.insert(2, Rows())


def random_by_a_module(cnn: nn.Sequential) -> None:
    """Draws its numbers in the order of the memory, so that they would be others than stock's."""
    cnn.insert(2, nn.Dropout(0.3))


class RowsPPO(PPO):
    """A user's loss that does so."""

    def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, dict[str, Any]]:
        assert batch.observations.view(len(batch.observations), -1).shape[1] == batch.observations[0].numel()
        return super().loss(batch, coefficients)


def model_of(cls: type[Any], space: spaces.Space[Any], channels_last: bool, **options: Any) -> Any:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "CnnPolicy"
    model = cls(policy, toy(space, ACTION_SPACES["discrete"]), **SMALL, **FEW[cls], **options)
    engine = model.prepare_engine()
    assert engine.channels_last
    model.prepare_engine = lambda: engine
    engine.channels_last = channels_last
    return model


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize(
    "space",
    [image(1), image(4), spaces.Dict({"vector": VECTOR, "image": image(3)})],
    ids=["one channel", "four channels", "in a dict"],
)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_an_update_is_the_same_to_rounding(cls: type[Any], space: spaces.Space[Any], shared: bool) -> None:
    options: dict[str, dict[str, Any]] = {"policy_kwargs": {"share_features_extractor": shared}}
    usual, fast = model_of(cls, space, False, **options), model_of(cls, space, True, **options)
    collect(usual)
    start(fast)
    copy_rollout(usual.rollout_buffer, fast.rollout_buffer)
    before = parameter_vector(usual.policy)
    assert th.equal(before, parameter_vector(fast.policy))
    for model in (usual, fast):
        np.random.seed(0)
        model.train()
    after = parameter_vector(usual.policy)
    assert not th.equal(before, after)
    # Adam moves an entry by the learning rate, 3e-4, whatever its gradient: a hundredth of a step, for gradients near zero.
    close = (after - parameter_vector(fast.policy)).abs() <= 3e-6 + 1e-3 * (after - before).abs()
    assert close.float().mean() > 0.999
    assert (after - parameter_vector(fast.policy)).norm() <= 0.01 * (after - before).norm()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_numbers_stay_and_only_their_order_in_memory_changes(channels: int) -> None:
    images = th.arange(5 * channels * 6 * 7).reshape(5, channels, 6, 7)
    laid_out: Any = to_channels_last({"image": images, "vector": images[:, 0, 0]})
    assert th.equal(laid_out["image"], images)
    assert laid_out["vector"].data_ptr() == images.data_ptr()
    pixel_by_pixel = (6 * 7 * channels, 1, 7 * channels, channels)
    assert laid_out["image"].stride() == pixel_by_pixel
    minibatch = laid_out["image"][th.tensor([3, 0])].float() / 255  # what happens to them on the way into the network
    assert minibatch.stride() == pixel_by_pixel


def test_code_that_is_not_of_sb3_gets_images_in_the_usual_order() -> None:
    # Channels first already, as SB3's transposition of other images hands them on in the other order itself.
    env = toy(spaces.Box(0, 255, (3, 36, 36), np.uint8), ACTION_SPACES["discrete"])
    model: Any = PPO("CnnPolicy", env, **SMALL, policy_kwargs={"features_extractor_class": RowsCNN}).learn(16)
    assert not model.engine_in_use.channels_last
    model = RowsPPO("CnnPolicy", env, **SMALL).learn(16)
    assert not model.engine_in_use.channels_last
    for change in (rows_by_a_hook, rows_by_a_module, random_by_a_module):
        model = PPO("CnnPolicy", env, **SMALL)
        change(model.policy.features_extractor.cnn)
        assert not model.learn(16).engine_in_use.channels_last
    stock: Any = PPO("CnnPolicy", env, **SMALL)
    collect(stock)
    assert stock.engine_in_use.channels_last
    with pytest.raises(RuntimeError, match="view"):  # what they would get otherwise
        next(stock.engine_in_use.data(stock.rollout_buffer).whole()).observations.view(-1)

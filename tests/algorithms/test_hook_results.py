"""What a hook returns is checked where it is called, and the message names the hook and the rule."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from toy_environments import toy

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.objectives import Count, Maximum

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}
RULE = r"must return \(loss, terms\): a tensor with one number, and a dictionary of numbers to log, by name; "


def trained(base: type[Any], name: str, change: Callable[[Any], Any]) -> Any:
    """A model whose hook returns what the stock one does, changed."""

    def hook(self: Any, *arguments: Any) -> Any:
        return change(getattr(base, name)(self, *arguments))

    return type("Mine", (base,), {name: hook})("MlpPolicy", toy(), **SMALL).learn(32)


THREE: Any = np.ones(3)
WRONG: list[tuple[Callable[[Any], Any], str]] = [
    (lambda pair: pair[0], r"it returned a Tensor of shape \(\)"),
    (lambda pair: None, "it returned None"),
    (lambda pair: (*pair, 1), "it returned a tuple of length 3"),
    (lambda pair: (pair[0], None), "its terms are None"),
    (lambda pair: (pair[0], [1.0]), "its terms are a list of length 1"),
    (lambda pair: (pair[0].item(), {}), "its loss is a value of type float"),
    (lambda pair: (pair[0].expand(3), {}), r"its loss is a Tensor of shape \(3,\)"),
    (lambda pair: (pair[0], {"mine": "x"}), "its term 'mine' is a value of type str"),
    (lambda pair: (pair[0], {"mine": th.ones(3)}), r"its term 'mine' is a Tensor of shape \(3,\)"),
    (lambda pair: (pair[0], {"mine": Maximum(THREE)}), r"its term 'mine' is a ndarray of shape \(3,\)"),
    (lambda pair: (pair[0], {1: 1.0}), "a name among its terms is a value of type int"),
]


@pytest.mark.parametrize(("base", "name"), [(PPO, "loss"), (TRPO, "value_loss")])
@pytest.mark.parametrize(("change", "found"), WRONG)
def test_a_loss_is_a_scalar_with_numbers_to_log(base: type[Any], name: str, change: Callable[[Any], Any], found: str) -> None:
    with pytest.raises(TypeError, match=rf"^Mine\.{name} {RULE}{found}$"):
        trained(base, name, change)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda scalar: scalar.item(), "a value of type float"),
        (lambda scalar: (scalar, {}), "a tuple of length 2"),
        (lambda scalar: None, "None"),
        (lambda scalar: scalar.expand(3), r"a Tensor of shape \(3,\)"),
    ],
)
def test_a_surrogate_is_a_scalar(change: Callable[[Any], Any], found: str) -> None:
    with pytest.raises(TypeError, match=rf"^Mine\.surrogate must return the surrogate, a tensor .*it returned {found}$"):
        trained(TRPO, "surrogate", change)


def test_a_function_on_the_object_is_named_without_a_class() -> None:
    model: Any = PPO("MlpPolicy", toy(), **SMALL)
    model.loss = lambda batch, coefficients: None
    with pytest.raises(TypeError, match=rf"^loss {RULE}it returned None"):
        model.learn(32)


def test_numbers_of_every_kind_are_logged() -> None:
    numbers: dict[str, Any] = {
        "python": 1.5,
        "whole": 2,
        "flag": True,
        "numpy": np.float32(2.5),
        "array": np.array(3.5),
        "tensor": th.tensor(4.5),
        "one": th.tensor([5.5]),
        "largest": Maximum(th.tensor(6.5)),
        "count": Count(1),
    }
    model = trained(PPO, "loss", lambda pair: (pair[0].reshape(1), {**pair[1], **numbers}))
    log = {name: model.logger.name_to_value[f"train/{name}"] for name in numbers}
    expected = {"python": 1.5, "whole": 2, "flag": 1, "numpy": 2.5, "array": 3.5, "tensor": 4.5, "one": 5.5, "largest": 6.5}
    assert log == {**expected, "count": 20}  # two minibatches in each of ten epochs
    assert trained(TRPO, "surrogate", lambda scalar: scalar.reshape(1)).engine_in_use.name == "autograd"

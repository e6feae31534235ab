"""Optimizers that a user makes, changes in a hook or steps by hand: the numbers are those of stock SB3."""

import copy
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch as th
from edited_models import OPTIONS, POLICIES, collect, difference, model_of, models_of, parameters_of, update_twice
from stable_baselines3 import PPO as StockPPO
from torch import nn
from toy_environments import copy_rollout, start, toy

from sb3_policyopt import PPO

# ------------------------------------------------------------------ optimizers


class Meddling(PPO):
    """A loss hook that does something to the optimizer or the gradients in the middle of an update."""

    meddle: Any = None

    def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, dict[str, Any]]:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls % 2 == 0:
            self.meddle(self.policy.optimizer)
        return super().loss(batch, coefficients)


class MeddlingStock(StockPPO):
    """The same in stock: before ``evaluate_actions``, which is the first thing that a minibatch does."""

    meddle: Any = None

    def train(self) -> None:
        policy: Any = self.policy
        evaluate = policy.evaluate_actions

        def evaluate_actions(*arguments: Any) -> Any:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls % 2 == 0:
                self.meddle(policy.optimizer)
            return evaluate(*arguments)

        policy.evaluate_actions = evaluate_actions
        try:
            super().train()
        finally:
            del policy.evaluate_actions


def scale_moments(optimizer: th.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        state["exp_avg"].mul_(0.5)


def replace_moments(optimizer: th.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        state["exp_avg"] = 0.5 * state["exp_avg"]


def share_moments(optimizer: th.optim.Optimizer) -> None:
    ForkingPickler.dumps(optimizer.state_dict())


def forget_one(optimizer: th.optim.Optimizer) -> None:
    """From here on the parameters have been stepped unequally often."""
    optimizer.state.pop(optimizer.param_groups[0]["params"][0], None)


def step_by_hand(optimizer: th.optim.Optimizer) -> None:
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = th.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize(
    "meddle",
    [
        scale_moments,
        replace_moments,
        share_moments,
        forget_one,
        step_by_hand,
        lambda optimizer: optimizer.zero_grad(),
        lambda optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
        lambda optimizer: optimizer.state.clear(),
        lambda optimizer: optimizer.param_groups[0].update(lr=1e-3),
    ],
    ids=["scale", "replace", "share", "forget_one", "step", "zero_grad", "load", "clear", "lr"],
)
def test_a_loss_hook_may_change_the_optimizer(meddle: Callable[..., Any]) -> None:
    models = [kind("MlpPolicy", toy(), **OPTIONS[PPO]) for kind in (MeddlingStock, Meddling)]
    stock, ours = models
    for model in models:
        model.meddle = meddle
        start(model)
    update_twice(stock, ours)
    assert stock.calls == ours.calls == 8
    assert difference(parameters_of(stock), parameters_of(ours)) <= 5e-6


@pytest.mark.parametrize("space", POLICIES)
def test_gradients_that_nobody_zeroes_add_up_as_in_stock(space: str) -> None:
    """They count in the norm by which the others are clipped."""
    models = models_of(PPO, space, "box_6")
    for model in models.values():
        model.max_grad_norm = 0.05
        model.policy.optimizer = th.optim.Adam(model.policy.mlp_extractor.parameters(), lr=3e-4)
        collect(model, [])
    for name, model in models.items():
        if name != "stock":
            copy_rollout(models["stock"].rollout_buffer, model.rollout_buffer)
    for model in models.values():
        np.random.seed(0)
        model.train()
    reference = parameters_of(models["stock"])
    assert all(difference(parameters_of(model), reference) <= 2e-6 for model in models.values())
    for name, parameter in models["stock"].policy.named_parameters():
        ours = dict(models["auto"].policy.named_parameters())[name].grad
        np.testing.assert_allclose(ours, parameter.grad, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_a_head_in_the_optimizer_that_is_not_the_policys_is_trained(micro_batch_size: int | None) -> None:
    """Its gradient is that of each minibatch alone."""

    class WithHead(PPO):
        head: nn.Module

        def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, dict[str, Any]]:
            loss, terms = super().loss(batch, coefficients)
            features = self.policy.mlp_extractor.policy_net(batch.observations)
            return loss + (self.head(features) - batch.observations[:, :1]).pow(2).mean(), terms

    runs = []
    for inside in (True, False):
        model: Any = WithHead("MlpPolicy", toy(), **OPTIONS[PPO], max_grad_norm=1e9, micro_batch_size=micro_batch_size)
        th.manual_seed(1)
        model.head = nn.Linear(64, 1)
        if inside:
            model.policy.head = model.head
        model.policy.optimizer = th.optim.Adam(
            [*model.policy.parameters(), *([] if inside else model.head.parameters())], lr=1e-3
        )
        before = model.head.weight.detach().clone()
        model.learn(64)
        assert not th.equal(model.head.weight, before)
        runs.append({**parameters_of(model), "head.weight": model.head.weight, "head.bias": model.head.bias})
    assert difference(*runs) <= 5e-6


@pytest.mark.parametrize("where", ["Adam", "object"])
def test_a_step_replaced_on_the_optimizer_or_its_class_is_called(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def step(optimizer: th.optim.Optimizer | None, closure: Any = None) -> None:
        calls.append(1)

    model = model_of(PPO).learn(32)
    before = parameters_of(model)
    if where == "Adam":
        monkeypatch.setattr(th.optim.Adam, "step", step)
    else:
        model.policy.optimizer.step = lambda closure=None: step(None)
    model.learn(32, reset_num_timesteps=False)
    assert len(calls) == 4 and difference(before, parameters_of(model)) == 0


class ResettingPPO(PPO):
    """Loads moments of 0 before every epoch, as a subclass may."""

    def run_epoch(self, *arguments: Any) -> Any:
        state = copy.deepcopy(self.policy.optimizer.state_dict())
        for moments in state["state"].values():
            moments["exp_avg"].zero_()
            moments["exp_avg_sq"].zero_()
        self.policy.optimizer.load_state_dict(state)
        return super().run_epoch(*arguments)


def test_moments_that_a_subclass_loads_between_epochs_are_those_that_are_stepped() -> None:
    models = {}
    for cls in (PPO, ResettingPPO):
        for engine in ("closed_form", "autograd"):
            model = models[cls, engine] = cls("MlpPolicy", toy(), engine=engine, **{**OPTIONS[PPO], "n_epochs": 3})
            start(model)
            collect(model, [])
    first, *others = models.values()
    for model in others:
        copy_rollout(first.rollout_buffer, model.rollout_buffer)
    for model in models.values():
        np.random.seed(0)
        model.train()
    fast, exact = parameters_of(models[ResettingPPO, "closed_form"]), parameters_of(models[ResettingPPO, "autograd"])
    assert difference(fast, exact) < 2e-6 < difference(fast, parameters_of(models[PPO, "closed_form"]))

"""
SB3's features extractors layer by layer, for the actor's Jacobian: T5 below the networks.

With x the input of a layer and y its output, a parameter that moves by δW, and an input that moves by δx:

    convolution, linear     δy = δW x + δb + W δx
    ReLU                    δy = [y > 0] δx

So J v takes two convolutions a layer and no graph. torch's derivative of a derivative takes twice as long, and its
forward-mode one and a half times, as it computes y again (``docs/performance.md``).
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch as th
import torch.nn.functional as F
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from sb3_policyopt.identity.originals import is_called_as_usual, is_original
from sb3_policyopt.identity.structure import GLOBAL_HOOKS, is_hooked
from sb3_policyopt.maths.terms import value_of
from sb3_policyopt.models.networks.actor_critic import ActorCriticNetworks, ActorPass
from sb3_policyopt.objectives.objective import slopes_of
from sb3_policyopt.objectives.outputs import Outputs
from sb3_policyopt.objectives.trust_region import SurrogateHook
from sb3_policyopt.optimisation.flat_parameters import FlatParameters
from sb3_policyopt.rollout.batch import Batch, Observations, of_features

METHODS: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((nn.Sequential, NatureCNN, FlattenExtractor, nn.Flatten, nn.ReLU, nn.Linear), ("forward",)),
    nn.Conv2d: ("forward", "_conv_forward"),
}
"""Modules that may stand one after another, with the methods by which they compute."""

Direction: TypeAlias = Callable[[th.Tensor | None], th.Tensor | None]
"""A parameter ↦ δ of it; None for one that does not move."""
Tangent: TypeAlias = Callable[[Direction, th.Tensor | None], th.Tensor | None]
"""(δ of the parameters, δ of the input) ↦ δ of the output; None for what does not move."""


def are_known(extractors: Sequence[nn.Module]) -> bool:
    """
    Whether features extractors are SB3's, or chains of what those are made of.

    :param extractors: of a policy
    :return: True if so: their derivatives are known here, and they compute the same kernels each time and wait for nothing
    """
    return not any(GLOBAL_HOOKS) and all(map(_is_known, extractors))


def _is_known(extractor: nn.Module) -> bool:
    """
    Whether an extractor is known.

    :param extractor: of a policy
    :return: True for a chain, and for a CombinedExtractor of chains
    """
    if type(extractor) is not CombinedExtractor:
        return all(map(_may_stand_in_chain, extractor.modules()))
    parts = extractor.extractors
    plain = type(parts) is nn.ModuleDict and not is_hooked(parts) and not is_hooked(extractor)
    plain = plain and is_original(extractor, CombinedExtractor, "forward") and is_called_as_usual(extractor)
    return plain and all(map(_is_known, parts.values()))


def _may_stand_in_chain(module: nn.Module) -> bool:
    """
    Whether a module computes what its class does.

    :param module: without its children
    :return: False also with hooks, methods of its own, or a weight that is computed from something else
    """
    kind = type(module)
    if kind not in METHODS or is_hooked(module) or not is_original(module, kind, *METHODS[kind]):
        return False
    if not is_called_as_usual(module):
        return False
    return kind not in (nn.Conv2d, nn.Linear) or set(module._parameters) == {"weight", "bias"}


class LinearisedExtractor:
    """
    A features extractor of known modules, which remembers what its derivative needs when it is called.

    :param extractor: for which :func:`are_known` is true
    """

    def __init__(self, extractor: nn.Module) -> None:
        self.extractor = extractor
        self.tangent: Tangent = _unmoved

    def __call__(self, observations: Observations[th.Tensor]) -> th.Tensor:
        """
        The features.

        :param observations: as SB3's preprocessing leaves them, first axis batch
        :return: shape (batch, n_features)
        """
        if isinstance(self.extractor, CombinedExtractor):
            assert isinstance(observations, dict)
            parts = {name: linearised(part, observations[name]) for name, part in self.extractor.extractors.items()}
            self.tangent = _joined([*parts.values()])
            return th.cat([features for features, _ in parts.values()], 1)
        assert not isinstance(observations, dict)
        features, self.tangent = linearised(self.extractor, observations)
        return features


def linearised(module: nn.Module, x: th.Tensor) -> tuple[th.Tensor, Tangent]:
    """
    A module's output, and how it moves.

    :param module: a known one
    :param x: its input
    :return: y as the module gives it, and its tangent
    """
    children: Any = ()
    if isinstance(module, NatureCNN):
        children = (module.cnn, module.linear)
    elif isinstance(module, FlattenExtractor):
        children = (module.flatten,)
    elif isinstance(module, nn.Sequential):
        children = module
    else:
        y: th.Tensor = module(x)
        return y, _tangent_of(module, x.detach(), y.detach())
    tangents = []
    for child in children:
        x, tangent = linearised(child, x)
        tangents.append(tangent)
    return x, _one_after_another(tangents)


def _tangent_of(module: nn.Module, x: th.Tensor, y: th.Tensor) -> Tangent:
    if isinstance(module, nn.Conv2d):
        return _affine(module.weight, module.bias, x, module._conv_forward)
    if isinstance(module, nn.Linear):
        return _affine(module.weight, module.bias, x, F.linear)
    if isinstance(module, nn.ReLU):
        return lambda _, dx: None if dx is None else dx * (y > 0)
    assert isinstance(module, nn.Flatten)
    return lambda _, dx: None if dx is None else module(dx)


def _affine(weight: th.Tensor, bias: th.Tensor | None, x: th.Tensor, apply: Callable[..., th.Tensor]) -> Tangent:
    """
    δy = δW x + δb + W δx.

    :param weight: W
    :param bias: b, None for none
    :param x: the input
    :param apply: (input, weight, bias) ↦ output
    :return: the tangent
    """

    def tangent(direction: Direction, dx: th.Tensor | None) -> th.Tensor | None:
        along, along_bias = direction(weight), direction(bias)
        moved = None
        if along is not None or along_bias is not None:  # one of them may be frozen
            moved = apply(x, th.zeros_like(weight) if along is None else along, along_bias)
        if dx is None:
            return moved
        through = apply(dx, weight, None)
        return through if moved is None else moved.add_(through)

    return tangent


def _one_after_another(tangents: Sequence[Tangent]) -> Tangent:
    def tangent(direction: Direction, dx: th.Tensor | None) -> th.Tensor | None:
        for of_layer in tangents:
            dx = of_layer(direction, dx)
        return dx

    return tangent


def _joined(parts: Sequence[tuple[th.Tensor, Tangent]]) -> Tangent:
    """
    The tangent of outputs that stand side by side.

    :param parts: the outputs, shape (batch, n) each, and their tangents
    :return: of all of them, whose inputs do not move
    """

    def tangent(direction: Direction, _: th.Tensor | None) -> th.Tensor | None:
        moves = [of_part(direction, None) for _, of_part in parts]
        if all(move is None for move in moves):
            return None
        return th.cat([th.zeros_like(y) if move is None else move for (y, _), move in zip(parts, moves, strict=True)], 1)

    return tangent


def _unmoved(direction: Direction, dx: th.Tensor | None) -> th.Tensor | None:
    return dx


class ExtractedPass:
    """
    A forward pass of the actor above its features extractor, with the Jacobian of both; see
    :class:`sb3_policyopt.objectives.outputs.Pass`.

    :param above: of the actor's network
    :param features: with their graph, shape (batch, n_features)
    :param tangent: of the extractor
    :param flat: the policy's parameters
    :param numbers: which of them are the extractor's
    """

    def __init__(
        self, above: ActorPass[th.Tensor], features: th.Tensor, tangent: Tangent, flat: FlatParameters, numbers: Sequence[int]
    ) -> None:
        self.above, self.features, self.tangent = above, features, tangent
        self.flat, self.numbers = flat, numbers

    @classmethod
    def of(
        cls,
        policy: ActorCriticPolicy,
        networks: ActorCriticNetworks[th.Tensor],
        flat: FlatParameters,
        batch: Batch[th.Tensor],
        with_jacobian: bool = True,
    ) -> "ExtractedPass":
        """
        A forward pass of a policy's actor.

        :param policy: whose actor's extractor :func:`are_known` knows
        :param networks: above it
        :param flat: the policy's parameters, the extractor's first
        :param batch: transitions
        :param with_jacobian: whether the Jacobian will be asked for
        :return: the pass
        """
        numbers = range(flat.offsets.index(networks.starts[0]))
        extractor = LinearisedExtractor(policy.pi_features_extractor)
        with th.set_grad_enabled(with_jacobian and bool(numbers)):
            features = BasePolicy.extract_features(policy, batch.observations, extractor)  # type: ignore[arg-type]
        masks = batch.context.get("action_masks")
        above = networks.actor_forward(features.detach()[None], masks, with_slopes=with_jacobian)
        return cls(above, features, extractor.tangent, flat, numbers)

    @property
    def outputs(self) -> Outputs[th.Tensor]:
        """Of the actor."""
        return self.above.outputs

    @property
    def parameters(self) -> tuple[th.Tensor, ...]:
        """Of the action distributions."""
        return self.above.parameters

    def with_surrogate(self, hook: SurrogateHook, batch: Batch[th.Tensor]) -> tuple[float, th.Tensor, "ExtractedPass"]:
        """
        T1, T3: g = Jᵀ ∂J/∂output.

        :param hook: what J is, one with a closed form
        :param batch: the transitions of the pass
        :return: J; g of shape (n_actor,); this pass
        """
        compute = slopes_of(hook)
        assert compute is not None
        slopes, terms = compute(self.outputs, of_features(batch))
        return float(value_of(terms["surrogate"])), self.pullback(slopes.parameters), self

    def metric(self) -> Callable[[tuple[th.Tensor, ...]], tuple[th.Tensor, ...]]:
        """That of the family."""
        return self.above.metric()

    def pushforward(self, direction: th.Tensor) -> tuple[th.Tensor, ...]:
        """J v by the tangent pass, through the extractor and on."""
        moves = {id(parameter): part for parameter, part in self._extractor_parts(direction)}
        with th.no_grad():
            dx = self.tangent(lambda parameter: moves.get(id(parameter)), None)
            return self.above.pushforward(direction, None if dx is None else dx[None])

    def pullback(self, slopes: tuple[th.Tensor, ...]) -> th.Tensor:
        """Jᵀ u by the backward pass, from the features on by torch."""
        into = th.zeros_like(self.flat.vector[: self.above.networks.n_actor])
        x_bar = self.above.backward(slopes, into, to_features=self.features.requires_grad)
        if self.features.requires_grad:
            parts = self._extractor_parts(into)
            parameters = [parameter for parameter, _ in parts]
            found = th.autograd.grad(self.features, parameters, x_bar[0], retain_graph=True, materialize_grads=True)
            for (_, place), gradient in zip(parts, found, strict=True):
                place.copy_(gradient.detach())
        return into

    def _extractor_parts(self, vector: th.Tensor) -> list[tuple[nn.Parameter, th.Tensor]]:
        """
        The extractor's parameters.

        :param vector: of the actor's parameters, shape (n_actor,)
        :return: each with its part of the vector, a view
        """
        flat = self.flat
        return [(flat.parameters[i], vector[flat.offsets[i] : flat.offsets[i + 1]].view(flat.shapes[i])) for i in self.numbers]

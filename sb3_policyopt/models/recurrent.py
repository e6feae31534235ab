"""
Policies with memory on the CPU: the recurrent networks between the features and the layers, see R1 and R2.

A step of the environments and TRPO's products with J and Jᵀ are written out in NumPy (:mod:`sb3_policyopt.maths.recurrence`).
A gradient goes through torch's own recurrent network, whose backward pass is the fastest there is, and from there up by the
closed form. The rows of a batch are flat; they are padded around the one call of the recurrent network only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_policyopt.distributions import ActionDistribution
from sb3_policyopt.maths.arrays import NumpyArray, mean
from sb3_policyopt.maths.recurrence import CELLS, Packing, Pass, Workspace
from sb3_policyopt.maths.terms import value_of
from sb3_policyopt.models import obstacles
from sb3_policyopt.models.hybrid import HybridModel
from sb3_policyopt.models.model import Decision
from sb3_policyopt.models.networks.actor_critic import ActorPass
from sb3_policyopt.models.networks.sb3_layout import features_extractors, make_features, memory_modules
from sb3_policyopt.models.networks.serving import NetworksWatch
from sb3_policyopt.objectives.objective import slopes_of
from sb3_policyopt.objectives.outputs import Outputs
from sb3_policyopt.objectives.trust_region import SurrogateHook, surrogate_value
from sb3_policyopt.optimisation.flat_parameters import FlatParameters
from sb3_policyopt.rollout.batch import Batch, Observations, in_numpy, one_array
from sb3_policyopt.rollout.context import NO_CONTEXT, Context, Memory, States
from sb3_policyopt.rollout.sequences import Sequences, from_padded, to_padded


class RecurrentNetwork:
    """
    One recurrent network, in NumPy on the memory of its torch parameters.

    :param module: an LSTM, or this package's GRU
    :param flat: the policy's parameters, among which its own follow each other
    """

    def __init__(self, module: nn.RNNBase, flat: FlatParameters) -> None:
        self.module = module
        self.cell = CELLS[module.mode.lower()](module.input_size, module.hidden_size, module.num_layers)
        start = flat.start_of(next(module.parameters()))
        self.range = slice(start, start + self.cell.size)
        theta: NumpyArray = flat.vector.numpy()[self.range]
        self.weights = self.cell.views(theta)
        self.workspaces: tuple[Workspace[NumpyArray], ...] = (Workspace(), Workspace())
        self._bytes = theta.view(np.uint8).data
        self._copied = bytearray()

    def step(self, x: NumpyArray, states: States, episode_starts: NumpyArray) -> tuple[NumpyArray, States]:
        """
        R1: one step of all environments.

        :param x: features, shape (n_envs, n_in)
        :param states: before the step, tensors of shape (n_layers, n_envs, hidden), not written to
        :param episode_starts: whose episode starts, shape (n_envs,)
        :return: outputs, shape (n_envs, hidden); the states after the step
        """
        before = [state.numpy() for state in states]
        if episode_starts.any():
            before = [np.where(np.asarray(episode_starts, bool)[:, None], np.float32(0), state) for state in before]
        if self._copied != self._bytes:  # a comparison of memory: no other test sees every change
            self._copied[:] = self._bytes
            self._prepared = self.cell.prepare(self.weights)
        n_states = self.cell.n_states  # a GRU passes the cell state on as it came
        output, after = self.cell.step(self._prepared, x, before[:n_states])
        hidden, cell = (*after, *before[n_states:])
        return output, (th.from_numpy(hidden), th.from_numpy(cell))

    def forward(self, x: NumpyArray, packing: Packing, states: States, with_slopes: bool = True) -> Pass[NumpyArray]:
        """
        R1: all rows of a batch.

        :param x: features, shape (batch, n_in)
        :param packing: of its sequences
        :param states: before each sequence, tensors of shape (n_layers, n_sequences, hidden)
        :param with_slopes: whether the Jacobian will be asked for
        :return: outputs, with what tangent and backward need; valid until the next call with the same ``with_slopes``
        """
        initial = [state.numpy() for state in states[: self.cell.n_states]]
        return self.cell.forward(self.weights, x, packing, initial, self.workspaces[with_slopes])

    def in_torch(self, x: th.Tensor, sequences: Sequences, states: States) -> th.Tensor:
        """
        The module itself on all rows of a batch.

        :param x: features, shape (batch, n_in)
        :param sequences: in which they lie
        :param states: before each of them
        :return: outputs, shape (batch, hidden)
        """
        if self.cell.n_states == 1:  # torch's GRU takes up to five times as long
            parameters = self.module.parameters()
            rows: th.Tensor = _WrittenOut.apply(self, x, sequences.packing, states, *parameters)  # type: ignore[no-untyped-call]
            return rows
        outputs, _ = self.module(to_padded(x, sequences).transpose(0, 1), states)
        return from_padded(outputs.transpose(0, 1).flatten(0, 1), sequences)


class _WrittenOut(th.autograd.Function):
    """A recurrent network in NumPy as a part of torch's graph."""

    @staticmethod
    def forward(
        ctx: Any, network: RecurrentNetwork, x: th.Tensor, packing: Packing, states: States, *parameters: th.Tensor
    ) -> th.Tensor:
        """R1; the parameters are named for the graph, and read from the network's own memory."""
        ctx.network, ctx.shapes = network, [parameter.shape for parameter in parameters]
        ctx.run = network.forward(x.detach().numpy(), packing, states)
        return th.from_numpy(ctx.run.outputs)

    @staticmethod
    def backward(ctx: Any, *slopes: th.Tensor) -> tuple[Any, ...]:
        """R2, the transposed Jacobian."""
        gradient = np.empty(ctx.network.cell.size, np.float32)
        to_input = ctx.needs_input_grad[1]
        x_bar = ctx.run.backward(slopes[0].contiguous().numpy(), ctx.network.cell.views(gradient), to_input)
        parts = th.split(th.from_numpy(gradient), [shape.numel() for shape in ctx.shapes])
        gradients = [part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True)]
        return None, None if x_bar is None else th.from_numpy(x_bar), None, None, *gradients


class RecurrentModel(HybridModel):
    """
    The model for policies with memory.

    :param policy: a policy in which :func:`sb3_policyopt.models.obstacles.networks_obstacle` found no obstacle
    :param family: of its action distribution
    :param channels_last: as of :class:`TorchModel`
    """

    def __init__(self, policy: ActorCriticPolicy, family: ActionDistribution, channels_last: bool = False) -> None:
        super().__init__(policy, family, channels_last)
        of_actor, of_critic = memory_modules(policy)
        self.pi = RecurrentNetwork(_recurrent(of_actor[0]), self.flat)
        self.vf, self.linear = None, None
        if of_critic and isinstance(of_critic[0], nn.Linear):
            self.linear = of_critic[0]
        elif of_critic:
            self.vf = RecurrentNetwork(_recurrent(of_critic[0]), self.flat)
        self.to_features = None
        if obstacles.unusual_features(policy) is None:
            self.to_features = make_features(policy)
            self.watch = NetworksWatch(policy, self.flat, *features_extractors(policy))

    # ------------------------------------------------------------------ rollout

    def act(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> Decision:
        """One step of the recurrent networks, one forward pass of the layers, and the next piece of noise."""
        memory, starts = _of_memory(context)
        x_pi, x_vf = self._inputs(observations)
        with self.acting.arithmetic():
            actor, states_pi = self.pi.step(x_pi, memory.pi, starts)
            critic, states_vf = (actor, states_pi) if self.shares else self._critic_step(x_vf, memory, starts, states_pi)
        decision = self.acting.act(actor[None] if self.shares else np.stack((actor, critic)), context.action_masks)
        return decision._replace(memory=Memory(states_pi, states_vf))

    def values(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> NumpyArray:
        """One step of the critic's recurrent network, and its layers."""
        memory, starts = _of_memory(context)
        x_pi, x_vf = self._inputs(observations)
        with self.acting.arithmetic():
            if self.shares:
                critic, _ = self.pi.step(x_pi, memory.vf, starts)
            else:
                critic, _ = self._critic_step(x_vf, memory, starts, memory.vf)
        return self.acting.values(critic[None])

    @property
    def shares(self) -> bool:
        """Whether the critic sees the outputs of the actor's recurrent network."""
        return self.vf is None and self.linear is None

    def _critic_step(
        self, x: NumpyArray, memory: Memory, episode_starts: NumpyArray, otherwise: States
    ) -> tuple[NumpyArray, States]:
        """
        What the critic's layers see.

        :param x: the critic's features, shape (n_envs, n_in)
        :param memory: the states before the step
        :param episode_starts: whose episode starts, shape (n_envs,)
        :param otherwise: the states after the step of a critic without memory
        :return: shape (n_envs, hidden); the states after the step
        """
        if self.vf is not None:
            return self.vf.step(x, memory.vf, episode_starts)
        assert self.linear is not None
        weight, bias = self.linear.weight.detach().numpy(), self.linear.bias.detach().numpy()
        return x @ weight.T + bias, otherwise

    def _inputs(self, observations: Observations[NumpyArray]) -> tuple[NumpyArray, NumpyArray]:
        """
        The features of one step.

        :param observations: as the VecEnv gives them
        :return: the actor's and the critic's, shape (n_envs, n_features)
        """
        if self.to_features is not None:
            x = self.to_features(one_array(observations))
            return x, x
        with th.no_grad():
            parts = self._extracted(obs_as_tensor(observations, self.policy.device), *self._extractors)
        return parts[0].detach().numpy(), parts[-1].detach().numpy()

    # ------------------------------------------------------------------ update

    def _features(self, batch: Batch[th.Tensor], critic_only: bool) -> th.Tensor:
        """The outputs of the recurrent networks; to a critic that shares the actor's they are numbers, as in sb3-contrib."""
        sequences = _sequences(batch)
        initial = sequences.initial
        extractors = (self.policy.vf_features_extractor,) if critic_only and not self.shares else self._extractors
        parts = self._extracted(batch.observations, *extractors)
        if self.shares:
            with th.set_grad_enabled(th.is_grad_enabled() and not critic_only):
                actor = self.pi.in_torch(parts[0], sequences, initial.vf if critic_only else initial.pi)
            return actor.detach()[None] if critic_only else th.stack((actor, actor.detach()))
        critic = parts[-1] if self.linear is None else self.linear(parts[-1])
        if self.vf is not None:
            critic = self.vf.in_torch(critic, sequences, initial.vf)
        return critic[None] if critic_only else th.stack((self.pi.in_torch(parts[0], sequences, initial.pi), critic))

    # ------------------------------------------------------------------ the actor's Jacobian

    @property
    def _layer_by_layer(self) -> bool:
        """The recurrent networks stand between the extractor and the layers, so that torch does all of them."""
        return False

    def actor_pass(self, batch: Batch[th.Tensor]) -> Any:
        """R2: the layers and the recurrent network written out; above an extractor with parameters, by torch."""
        if self.to_features is None:
            return super().actor_pass(batch)
        self.flat.bring()
        return self._written_out(batch)

    def _written_out(self, batch: Batch[th.Tensor], with_slopes: bool = True) -> "RecurrentPass":
        """
        A forward pass of the actor.

        :param batch: transitions
        :param with_slopes: whether the Jacobian will be asked for
        :return: the pass
        """
        assert self.to_features is not None
        sequences, masks = _sequences(batch), batch.context.get("action_masks")
        x = self.to_features(one_array(batch.observations).numpy())
        memory_pass = self.pi.forward(x, sequences.packing, sequences.initial.pi, with_slopes)
        layers_pass = self.networks.actor_forward(
            memory_pass.outputs[None], None if masks is None else masks.numpy(), with_slopes
        )
        return RecurrentPass(self.pi, memory_pass, layers_pass)

    def surrogate_pass(self, hook: SurrogateHook, batch: Batch[th.Tensor]) -> tuple[float, th.Tensor, Any]:
        """g = Jᵀ ∂J/∂output."""
        if self.to_features is None:
            return super().surrogate_pass(hook, batch)
        forward, compute = self.actor_pass(batch), slopes_of(hook)
        assert compute is not None
        slopes, terms = compute(forward.outputs, in_numpy(batch))
        return float(value_of(terms["surrogate"])), forward.pullback(slopes.parameters), forward

    def surrogate_and_kl(self, hook: SurrogateHook, batch: Batch[th.Tensor], old: tuple[Any, ...]) -> tuple[float, float]:
        """One forward pass of the actor."""
        if self.to_features is None:
            return super().surrogate_and_kl(hook, batch, old)
        outputs = self._written_out(batch, with_slopes=False).outputs
        kl = self.networks.family.kl(old, outputs.parameters)
        return float(surrogate_value(hook, outputs, in_numpy(batch))), float(mean(kl))


class RecurrentPass:
    """
    A forward pass of the actor with its Jacobian through time (R2); see :class:`sb3_policyopt.objectives.outputs.Pass`.

    The states before each sequence are constants.

    :param network: the actor's recurrent network
    :param memory_pass: of it
    :param layers_pass: of the layers above it
    """

    def __init__(self, network: RecurrentNetwork, memory_pass: Pass[NumpyArray], layers_pass: ActorPass[NumpyArray]) -> None:
        self.network, self.memory_pass, self.layers_pass = network, memory_pass, layers_pass

    @property
    def outputs(self) -> Outputs[NumpyArray]:
        """Of the actor."""
        return self.layers_pass.outputs

    @property
    def parameters(self) -> tuple[NumpyArray, ...]:
        """Of the action distributions."""
        return self.outputs.parameters

    def metric(self) -> Callable[[tuple[NumpyArray, ...]], tuple[NumpyArray, ...]]:
        """That of the family."""
        return self.layers_pass.metric()

    def pushforward(self, direction: th.Tensor) -> tuple[NumpyArray, ...]:
        """J v: tangent through time, then through the layers."""
        along = self.network.cell.views(direction.numpy()[self.network.range])
        moved = self.memory_pass.tangent(along)
        return self.layers_pass.pushforward(direction, moved[None])

    def pullback(self, slopes: tuple[NumpyArray, ...]) -> th.Tensor:
        """Jᵀ u: backward through the layers, then through time in reverse."""
        product = np.empty(self.layers_pass.networks.n_actor, np.float32)
        x_bar = self.layers_pass.backward(slopes, product, to_features=True)
        self.memory_pass.backward(x_bar[0], self.network.cell.views(product[self.network.range]))
        return th.from_numpy(product)


def _recurrent(module: nn.Module) -> nn.RNNBase:
    assert isinstance(module, nn.RNNBase)
    return module


def _sequences(batch: Batch[th.Tensor]) -> Sequences:
    assert batch.sequences is not None, "a batch of a policy with memory has sequences"
    return batch.sequences


def _of_memory(context: Context) -> tuple[Memory, NumpyArray]:
    assert context.memory is not None and context.episode_starts is not None, "a policy with memory is given its states"
    return context.memory, context.episode_starts

"""
What the ranks of a training share, so that they are one algorithm on the data of all.

The ranks run the same script, each with its own environments. Everything that is an average over transitions (gradients,
J, F v, KL, the moments of the advantages, metrics) becomes the average over the transitions of all ranks, and every
decision is made from such numbers, which have the same bits everywhere. Without a launcher every function here leaves
things as they are.
"""

import io
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_policyopt import distributed
from sb3_policyopt.distributed import broadcast_, from_rank_0, gather, max_, rank, sum_, world_size
from sb3_policyopt.engines.engine import Batch, Engine, Expansion, Terms
from sb3_policyopt.maths import losses

if TYPE_CHECKING:
    from sb3_policyopt.on_policy import PolicyOptimization

# ---------------------------------------------------------------------- the start of training


@contextmanager
def training(model: "PolicyOptimization") -> Iterator[None]:
    """
    Within this context the ranks train one model: that of rank 0, which is also the only one that logs.

    :param model: about to learn
    :raises ValueError: if the ranks were given different arguments
    :raises RankLostError: if another rank failed or is gone
    """
    with distributed.together():
        if world_size() > 1:
            if rank() > 0:
                model.set_logger(Logger(folder=None, output_formats=[]))
            check_alike(model)
            adopt_state(model)
            adopt_moments(model.get_vec_normalize_env())
        yield


def check_alike(model: "PolicyOptimization") -> None:
    """
    Refuse ranks that do not run the same training.

    :param model: about to learn
    :raises ValueError: naming the first difference
    """
    mine = {
        "the algorithm": type(model).__name__,
        "the policy": type(model.policy).__name__,
        "the shapes of its parameters": [tuple(parameter.shape) for parameter in model.policy.parameters()],
        **{
            name: getattr(model, name, None)
            for name in ("n_steps", "n_epochs", "n_critic_updates", "sub_sampling_factor", "normalize_advantage")
        },
    }
    theirs = gather(mine)
    for other, settings in enumerate(theirs):
        for name, value in settings.items():
            if value != theirs[0][name]:
                raise ValueError(
                    f"{name} differs between the ranks: {theirs[0][name]} on rank 0, {value} on rank {other}; "
                    "start every rank with the same script and arguments"
                )


def adopt_state(model: "PolicyOptimization") -> None:
    """
    Take over the parameters, the optimizer's state and the step counts of rank 0.

    :param model: changed on the other ranks
    """
    file = io.BytesIO()
    if rank() == 0:
        counts = {"num_timesteps": model.num_timesteps, "_n_updates": model._n_updates}
        th.save((model.policy.state_dict(), model.policy.optimizer.state_dict(), counts), file)
    state = from_rank_0(file.getvalue())
    if rank() > 0:
        # Not only tensors: an optimizer's groups hold what its user likes.
        policy, optimizer, counts = th.load(io.BytesIO(state), map_location=model.device, weights_only=False)
        model.policy.load_state_dict(policy)
        model.policy.optimizer.load_state_dict(optimizer)
        vars(model).update(counts)


def keep_together(model: "PolicyOptimization") -> None:
    """
    Make sure after an update that all ranks have the same policy, bit for bit.

    They have it anyway where equal numbers give equal results; ranks on different kinds of processor may differ in the last
    bit, and so do the running statistics of batch normalisation. Rank 0 is then right.

    :param model: just updated
    """
    if world_size() == 1:
        return
    digest = sum((_digest(tensor) for tensor in model.policy.state_dict().values()), th.zeros((), dtype=th.int64))
    largest, minus_smallest = max_(th.stack((digest, -digest))).tolist()
    if largest != -minus_smallest:
        adopt_state(model)


def _digest(tensor: th.Tensor) -> th.Tensor:
    """
    A number that changes with any bit.

    :param tensor: any
    :return: int64, on the CPU
    """
    integer = {1: th.uint8, 2: th.int16, 4: th.int32, 8: th.int64}[tensor.element_size()]
    bits = tensor.detach().contiguous().view(-1).view(integer).long()
    return (bits * th.arange(1, 2 * len(bits), 2, device=bits.device)).sum().cpu()


def seed_of_this_rank(seed: int | None, n_envs: int) -> int | None:
    """
    Different random numbers on every rank. The environments of all ranks together get the seeds that one process would give
    them: seed, seed + 1, …

    :param seed: the user's; None for none
    :param n_envs: number of environments of a rank
    :return: seed + rank · n_envs
    """
    return None if seed is None else seed + rank() * n_envs


# ---------------------------------------------------------------------- callbacks


class ProgressBar(ProgressBarCallback):
    """SB3's progress bar, which counts the environments of this rank only, made to count those of all."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.first_timestep = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.model.num_timesteps - self.first_timestep - self.pbar.n)
        return True


def callbacks_of_this_rank(callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
    """
    All callbacks on rank 0; on the others those that do more than evaluate, save or show.

    :param callback: the user's
    :param progress_bar: whether to show one
    :return: the callback for this rank, and whether SB3 should add its progress bar
    """
    if world_size() == 1:
        return callback, progress_bar
    if rank() == 0:
        bar = [ProgressBar()] if progress_bar else []
        return CallbackList([_as_callback(callback), *bar]), False
    return _without_rank_0s(_as_callback(callback)), False


def _as_callback(callback: MaybeCallback) -> BaseCallback:
    """
    As SB3 does it.

    :param callback: a callback, a function, a list of callbacks, or None
    :return: a callback
    """
    if isinstance(callback, list):
        return CallbackList(callback)
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(cast(Any, callback))


def _without_rank_0s(callback: BaseCallback) -> BaseCallback | None:
    """
    Leave out what only rank 0 should do.

    :param callback: any
    :return: what is left of it
    """
    if isinstance(callback, (EvalCallback, CheckpointCallback, ProgressBarCallback)):
        return None
    if getattr(callback, "rank_zero_only", False):
        return None
    if isinstance(callback, CallbackList):
        return CallbackList([left for child in callback.callbacks if (left := _without_rank_0s(child)) is not None])
    if isinstance(callback, EventCallback) and callback.callback is not None and _without_rank_0s(callback.callback) is None:
        return None
    return callback


# ---------------------------------------------------------------------- rollouts

_merged: WeakKeyDictionary[VecNormalize, list[RunningMeanStd]] = WeakKeyDictionary()
"""The moments of each ``VecNormalize`` when all ranks last agreed on them."""


def running_moments(env: VecNormalize) -> list[RunningMeanStd]:
    """
    What a ``VecNormalize`` estimates.

    :param env: any
    :return: its moments, of observations first
    """
    observations = getattr(env, "obs_rms", None)
    parts = observations.values() if isinstance(observations, dict) else [observations]
    return [part for part in (*parts, env.ret_rms) if part is not None]


def adopt_moments(env: VecNormalize | None) -> None:
    """
    Take over the moments of rank 0.

    :param env: changed on the other ranks; None for none
    """
    if env is None:
        return
    agreed = from_rank_0(running_moments(env))
    for mine, theirs in zip(running_moments(env), agreed, strict=True):
        vars(mine).update(vars(theirs.copy()))
    _merged[env] = agreed


def increment(before: RunningMeanStd, now: RunningMeanStd) -> RunningMeanStd:
    """
    The moments of what was added between two times: Chan et al. (1979), solved for the second sample.

    :param before: moments of a sample
    :param now: moments of that sample and another
    :return: the moments of the other
    """
    added = RunningMeanStd(epsilon=now.count - before.count, shape=before.mean.shape)
    if added.count > 0:
        delta = (now.mean - before.mean) * (now.count / added.count)
        squares = now.var * now.count - before.var * before.count - delta**2 * (before.count * added.count / now.count)
        added.mean, added.var = before.mean + delta, np.maximum(squares, 0) / added.count
    return added


class SharedRollout:
    """
    One rollout of all ranks: how many environments there are, and what the ranks tell each other at its end.

    :param model: about to collect
    :param n_envs: number of environments of this rank
    """

    def __init__(self, model: "PolicyOptimization", n_envs: int) -> None:
        self.model = model
        self.n_envs = sum(gather(n_envs))
        self.episodes: list[tuple[Any, Any]] = []
        self.before = [list(buffer or ()) for buffer in (model.ep_info_buffer, model.ep_success_buffer)]

    def note(self, infos: list[dict[str, Any]], dones: "np.ndarray[Any, Any]") -> None:
        """
        Remember the episodes that ended with a step.

        :param infos: of all environments of this rank
        :param dones: whose episode ended, shape (n_envs,)
        """
        if world_size() > 1:
            self.episodes += [(infos[i].get("episode"), infos[i].get("is_success")) for i in np.flatnonzero(dones)]

    def end(self, complete: bool) -> bool:
        """
        Exchange episode statistics and the moments of ``VecNormalize``.

        :param complete: False if a callback on this rank asked to stop
        :return: False if one on any rank did
        """
        if world_size() == 1:
            return complete
        env = self.model.get_vec_normalize_env()
        before = [] if env is None else _merged[env]
        now = [] if env is None else running_moments(env)
        added = [increment(old, new) for old, new in zip(before, now, strict=True)]
        reports = gather((complete, self.episodes, added))
        self._merge_episodes([episodes for _, episodes, _ in reports])
        for i, moments in enumerate(before):
            for _, _, parts in reports:
                if parts[i].count > 0:
                    moments.combine(parts[i])
            vars(now[i]).update(vars(moments.copy()))
        return all(complete for complete, _, _ in reports)

    def _merge_episodes(self, episodes: list[list[tuple[Any, Any]]]) -> None:
        """
        Bring the statistics of all ranks into SB3's windows, in turn, so that none crowds out another.

        :param episodes: of each rank
        """
        in_turn = [episode for turn in zip_longest(*episodes) for episode in turn if episode is not None]
        buffers: tuple[deque[Any] | None, ...] = (self.model.ep_info_buffer, self.model.ep_success_buffer)
        for kind, buffer in enumerate(buffers):
            assert buffer is not None
            buffer.clear()
            buffer.extend(chain(self.before[kind], (episode[kind] for episode in in_turn if episode[kind] is not None)))


def variance(array: "np.ndarray[Any, Any]") -> Any:
    """
    The variance over all ranks.

    :param array: this rank's numbers
    :return: a scalar
    """
    if world_size() == 1:
        return np.var(array)
    total = RunningMeanStd(epsilon=0.0)
    for count, mean, var in gather((array.size, np.asarray(array.mean(dtype=np.float64)), np.asarray(array.var(dtype=np.float64)))):
        total.update_from_moments(mean, var, count)
    return total.var


# ---------------------------------------------------------------------- minibatches


def normalize(advantages: Any) -> Any:
    """
    Advantages with mean 0 and standard deviation 1 over all ranks.

    :param advantages: shape (batch,)
    :return: shape (batch,)
    """
    return losses.normalize(advantages) if world_size() == 1 else _normalize_pieces([advantages])[0]


def in_step(minibatches: Iterator[Batch], normalized: bool) -> Iterator[Batch]:
    """
    Let the ranks take their minibatches together.

    :param minibatches: of one pass over this rank's rollout
    :param normalized: whether advantages are normalised, over the minibatches that all ranks take at a time
    :return: the minibatches; under a launcher as many on each rank, the missing ones empty
    """
    if world_size() == 1:
        for batch in minibatches:
            yield batch._replace(advantages=losses.normalize(batch.advantages)) if normalized else batch
        return
    batches = list(minibatches)
    most = max(gather(len(batches)))
    batches += [batches[0].rows(slice(0, 0))] * (most - len(batches))
    if normalized:
        advantages = _normalize_pieces([batch.advantages for batch in batches])
        batches = [batch._replace(advantages=piece) for batch, piece in zip(batches, advantages, strict=True)]
    yield from batches


def _normalize_pieces(pieces: list[Any]) -> list[Any]:
    """
    Normalise several batches, each over all ranks, with two reductions for all of them.

    :param pieces: shape (batch,) each, as many on every rank; empty ones count for nothing
    :return: the same shapes
    """
    values = th.cat([th.as_tensor(piece) for piece in pieces])
    sizes = [len(piece) for piece in pieces]
    piece_of = th.repeat_interleave(th.tensor(sizes)).to(values.device)

    def totals(x: th.Tensor) -> th.Tensor:
        return sum_(th.zeros(len(pieces), dtype=th.float64, device=x.device).index_add_(0, piece_of, x.double()))

    counts = th.tensor(gather(sizes), dtype=th.float64, device=values.device).sum(0)
    centred = values - (totals(values) / counts)[piece_of]
    deviations = (totals(centred**2) / (counts - 1).clamp(min=1)).sqrt() + 1e-8
    normal = th.where(counts[piece_of] > 1, centred / deviations[piece_of], values.double()).to(values.dtype)
    parts = list(th.split(normal, sizes))
    return parts if isinstance(pieces[0], th.Tensor) else [part.numpy() for part in parts]


class SharedGradient:
    """
    The mean of a gradient and of the terms of its loss over the minibatches of all ranks, with one all-reduce.

    :param gradient: where the engine leaves this rank's gradient and expects that of all; shape (n,)
    """

    def __init__(self, gradient: th.Tensor) -> None:
        self.gradient = gradient
        self.names: list[str] = []
        self.tensors = False

    def __call__(self, compute: Callable[..., Terms], minibatch: Batch, *arguments: Any) -> Terms:
        """
        Compute a gradient together.

        :param compute: of the engine, leaves this rank's gradient of a mean over a minibatch
        :param minibatch: this rank's; may be empty, but not the first
        :param arguments: further ones of ``compute``
        :return: the terms; those whose names end in ``_max`` are this rank's
        """
        if world_size() == 1:
            return compute(minibatch, *arguments)
        terms = compute(minibatch, *arguments) if minibatch.size else {}
        if not self.names:
            self.names = [name for name in terms if not name.endswith("_max")]
            self.tensors = isinstance(terms[self.names[0]], th.Tensor)
        n, message = len(self.gradient), self.gradient.new_zeros(len(self.gradient) + len(self.names) + 1)
        if terms:
            values = [terms[name] for name in self.names]
            message[:n] = self.gradient
            message[n:-1] = th.stack(values) if self.tensors else th.tensor(values)
            message[-1] = 1
            message *= minibatch.size
        mean = sum_(message)
        mean = mean[:-1] / mean[-1]
        self.gradient.copy_(mean[:n])
        shared = mean[n:].unbind() if self.tensors else mean[n:].tolist()
        return {**terms, **dict(zip(self.names, shared, strict=True))}


def reduce_maxima(terms: dict[str, float]) -> dict[str, float]:
    """
    The largest over all ranks of what is logged as a maximum.

    :param terms: by name; names ending in ``_max`` are reduced
    :return: all terms
    """
    names = sorted(name for name in terms if name.endswith("_max"))
    if world_size() == 1 or not names:
        return terms
    maxima = max_(th.tensor([terms[name] for name in names], dtype=th.float64)).tolist()
    return {**terms, **dict(zip(names, maxima, strict=True))}


# ---------------------------------------------------------------------- TRPO


def led(update: Callable[[Engine, Batch], Terms], engine: Engine, rollout: Batch) -> Terms:
    """
    Let rank 0 make TRPO's policy update (T1-T9) while the others answer its questions about their own transitions.

    So there is one conjugate gradient method and one line search, and the ranks cannot part over a rounding error.

    :param update: TRPO's; asks the engine for ``expansion``, its Fisher products, and ``surrogate_and_kl``
    :param engine: this rank's
    :param rollout: this rank's transitions
    :return: what rank 0's update returned
    """
    if world_size() == 1:
        return update(engine, rollout)
    shared = SharedEngine(engine)
    terms: Terms = {}
    if rank() == 0:
        terms = update(cast(Engine, shared), rollout)
        shared.ask(SharedEngine.END)
    else:
        shared.answer(rollout)
    broadcast_(engine.actor_parameters)
    return from_rank_0(terms)


class SharedEngine:
    """
    An engine for the transitions of all ranks: each question that rank 0 puts to it is put to the engine of every rank.

    :param engine: this rank's
    """

    END, EXPANSION, FISHER, EVALUATION = range(4)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.message = th.zeros(engine.n_actor + 1, device=engine.actor_parameters.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def ask(self, question: int, vector: Any = 0.0) -> None:
        """
        Tell the other ranks what to compute.

        :param question: which
        :param vector: what it is about, shape (n_actor,) or a number
        """
        self.message[0] = question
        self.message[1:] = vector
        broadcast_(self.message)

    def answer(self, rollout: Batch) -> None:
        """
        Compute this rank's part of every question until the end.

        :param rollout: this rank's transitions
        """
        self.engine.policy.set_training_mode(False)
        while (question := int(broadcast_(self.message)[0])) != self.END:
            vector = self.message[1:].clone()
            if question == self.EXPANSION:
                self._expansion(rollout, int(vector[0]))
            elif question == self.FISHER:
                self._fisher(vector)
            else:
                self.engine.actor_parameters.copy_(vector)
                self._surrogate_and_kl(rollout)

    def expansion(self, rollout: Batch, thinning: int = 1) -> Expansion:
        """J, g, F and π_old, see :meth:`Engine.expansion`."""
        self.ask(self.EXPANSION, float(thinning))
        return self._expansion(rollout, thinning)

    def _expansion(self, rollout: Batch, thinning: int) -> Expansion:
        sizes = gather((rollout.size, len(range(0, rollout.size, thinning))))
        total, thinned = (sum(column) for column in zip(*sizes, strict=True))
        self.share, self.fisher_share = rollout.size / total, sizes[rank()][1] / thinned
        self.own = self.engine.expansion(rollout, thinning)
        gradient = sum_(self.share * self.own.gradient)
        surrogate = sum_(th.tensor(self.share * self.own.surrogate, dtype=th.float64)).item()
        return Expansion(surrogate, gradient, self.fisher, self.own.old)

    def fisher(self, vector: th.Tensor) -> th.Tensor:
        """F v."""
        self.ask(self.FISHER, vector)
        return self._fisher(vector)

    def _fisher(self, vector: th.Tensor) -> th.Tensor:
        return sum_(self.fisher_share * self.own.fisher(vector))

    def surrogate_and_kl(self, rollout: Batch, old: Any) -> tuple[float, float]:
        """J and the KL at the current parameters, see :meth:`Engine.surrogate_and_kl`."""
        self.ask(self.EVALUATION, self.engine.actor_parameters)
        return self._surrogate_and_kl(rollout)

    def _surrogate_and_kl(self, rollout: Batch) -> tuple[float, float]:
        numbers = th.tensor(self.engine.surrogate_and_kl(rollout, self.own.old), dtype=th.float64)
        surrogate, kl = sum_(self.share * numbers).tolist()
        return surrogate, kl

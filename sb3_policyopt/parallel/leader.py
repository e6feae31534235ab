"""TRPO's policy update on the transitions of all ranks."""

from collections.abc import Callable
from typing import Any, cast

import torch as th

from sb3_policyopt.models.model import Batch, Engine, Expansion, Terms
from sb3_policyopt.parallel.collectives import broadcast_, from_rank_0, gather, sum_
from sb3_policyopt.parallel.launcher import rank, world_size


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

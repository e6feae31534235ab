"""
TRPO's policy update on the transitions of all ranks.

Rank 0 runs the update (T1-T9). Whenever it needs F v, J or KL, it broadcasts a request, and every rank computes its share from
its own transitions. So there is one conjugate gradient method and one line search, and a rounding error that differs between
kinds of processor cannot lead the ranks to different decisions.
"""

from collections.abc import Callable
from enum import IntEnum

import torch as th

from sb3_policyopt.maths.terms import Terms
from sb3_policyopt.objectives.trust_region import TrustRegion
from sb3_policyopt.parallel.collectives import broadcast_, from_rank_0, gather, sum_
from sb3_policyopt.parallel.launcher import rank


class Request(IntEnum):
    """What the other ranks have to compute."""

    END = 0
    FISHER = 1
    EVALUATE = 2


class SharedTrustRegion(TrustRegion):
    """
    The trust region of the transitions of all ranks. Made on all of them together.

    :param own: that of this rank's transitions
    :param parameters: of the actor, shape (n_actor,)
    """

    def __init__(self, own: TrustRegion, parameters: th.Tensor) -> None:
        self.own = own
        self.parameters = parameters
        self._message = parameters.new_zeros(len(parameters) + 1)
        self._code, self._vector = self._message[0], self._message[1:]  # what is asked, and about which vector
        sizes = gather((own.size, own.fisher_size))
        total, thinned = (sum(column) for column in zip(*sizes, strict=True))
        self.size, self.fisher_size = total, thinned
        self._share, self._fisher_share = own.size / total, own.fisher_size / thinned
        self.gradient = sum_(self._share * own.gradient)
        self.surrogate = sum_(th.tensor(self._share * own.surrogate, dtype=th.float64)).item()

    def fisher(self, vector: th.Tensor) -> th.Tensor:
        """F v, on rank 0."""
        self._request(Request.FISHER, vector)
        return self._fisher(vector)

    def evaluate(self) -> tuple[float, float]:
        """J and the KL at the current parameters, on rank 0."""
        self._request(Request.EVALUATE, self.parameters)
        return self._evaluate()

    def answer(self) -> None:
        """On the other ranks: compute this rank's share of every request until the end."""
        while (request := self._next_request()) != Request.END:
            vector = self._vector.clone()
            if request == Request.FISHER:
                self._fisher(vector)
            else:
                self.parameters.copy_(vector)
                self._evaluate()

    def end(self) -> None:
        """On rank 0: there are no further requests."""
        self._request(Request.END, self.parameters)

    def _request(self, request: Request, vector: th.Tensor) -> None:
        self._code.fill_(float(request))
        self._vector.copy_(vector)
        broadcast_(self._message)

    def _next_request(self) -> Request:
        broadcast_(self._message)
        return Request(int(self._code))

    def _fisher(self, vector: th.Tensor) -> th.Tensor:
        return sum_(self._fisher_share * self.own.fisher(vector))

    def _evaluate(self) -> tuple[float, float]:
        numbers = th.tensor(self.own.evaluate(), dtype=th.float64)
        surrogate, kl = sum_(self._share * numbers).tolist()
        return surrogate, kl


def lead(update: Callable[[TrustRegion], Terms], region: TrustRegion, parameters: th.Tensor) -> Terms:
    """
    Run TRPO's policy update on rank 0, and give its result to all.

    :param update: asks the trust region for F v, J and KL, and changes the parameters
    :param region: of this rank's transitions
    :param parameters: of the actor, shape (n_actor,)
    :return: what rank 0's update returned
    """
    shared = SharedTrustRegion(region, parameters)
    terms: Terms = {}
    if rank() == 0:
        terms = update(shared)
        shared.end()
    else:
        shared.answer()
    broadcast_(parameters)
    return from_rank_0(terms)

"""
One flat vector of parameters on which engines compute, and its tie to the parameters of the policy.

The policy's modules keep their parameters: the objects stay the same. Where no other object holds a parameter's memory, the
parameter is moved into the vector's, so that both are one and nothing is ever copied. Where one does (another process
with which it is shared, a ``state_dict`` that a user kept, an array made by ``parameter.detach().numpy()``), the parameter
stays where it is, and the vector is a copy that is brought up to date before it is read and written back after a step.

Each parameter has a storage of its own, though their memory lies side by side. What pickles, shares or writes a storage
(``pickle``, ``torch.save``, ``multiprocessing``, safetensors) sees a parameter as stock SB3 has it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch as th
from torch import nn
from torch.utils.dlpack import from_dlpack


class FlatParameters:
    """
    One vector θ and one gradient for a list of parameters.

    :param parameters: what the vector holds, in this order
    :raises ValueError: if one stands there twice, if two of them share memory, or if they do not share one floating dtype
        and one device
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        _check_distinct(self.parameters)
        kinds = {(parameter.dtype, parameter.device) for parameter in self.parameters}
        if len(kinds) > 1:
            raise ValueError(
                "The policy's trainable parameters must share one dtype and one device, but they have "
                f"{sorted(f'{dtype} on {device}' for dtype, device in kinds)}; "
                "convert the policy with policy.to(...), or freeze some with requires_grad_(False)"
            )
        dtype, device = kinds.pop() if kinds else (th.float32, th.device("cpu"))
        sizes = [parameter.numel() for parameter in self.parameters]
        self.offsets = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self.vector = th.empty(self.offsets[-1], dtype=dtype, device=device)
        self.gradient = th.zeros_like(self.vector)
        self.absent: set[int] = set()
        """Numbers of the parameters on which the last loss did not depend; they have no gradient, rather than one of 0."""
        self.unwatched = True
        """Whether code of others has run since the parameters' and the optimizer's memory was looked at."""
        self.kind = dtype, device
        self.shapes = [parameter.shape for parameter in self.parameters]
        self._gradient_places = self.places(self.gradient)
        self._addresses = [-1] * len(self.parameters)
        self._borrowed_numbers: list[int] = []
        self._borrowed: list[tuple[nn.Parameter, th.Tensor]] = []
        self._take_over()

    @property
    def owned(self) -> bool:
        """Whether the memory of all parameters is the vector's."""
        return not self._borrowed

    def places(self, vector: th.Tensor, first: int = 0) -> list[th.Tensor]:
        """
        A vector cut into the parameters' shapes.

        :param vector: θ, a gradient or another vector of its layout, shape (n,)
        :param first: number of the first parameter wanted
        :return: a view for each parameter from there on
        """
        cuts = zip(pairwise(self.offsets), self.shapes, strict=True)
        return [vector[start:stop].view(shape) for (start, stop), shape in cuts][first:]

    def start_of(self, parameter: th.Tensor) -> int:
        """
        Where a parameter's entries begin in the vector.

        :param parameter: one of them
        :return: its offset
        """
        return next(start for mine, start in zip(self.parameters, self.offsets, strict=False) if mine is parameter)

    def pull(self, thorough: bool = True) -> bool:
        """
        Bring the vector up to date: call before it is read.

        :param thorough: whether to look for other views of the same memory too, such as a transposed one
        :return: False if a parameter has another shape, dtype or device now, which needs another vector
        """
        in_place = [*map(th.Tensor.data_ptr, self.parameters)] == self._addresses
        if in_place and thorough:
            in_place = all(map(th.Tensor.is_contiguous, self.parameters))
        if not in_place and not self._take_over():
            return False
        for parameter, place in self._borrowed:
            place.copy_(parameter.detach())
        return True

    def bring(self, thorough: bool = True) -> None:
        """
        Bring the vector up to date in the middle of an update.

        :param thorough: see :meth:`pull`
        :raises ValueError: if a parameter has another shape, dtype or device than at the update's start
        """
        if not self.pull(thorough):
            raise ValueError(
                "A parameter of the policy was given another shape, dtype or device in the middle of an update; "
                "make such changes between updates, for example in a callback's _on_rollout_start"
            )

    def gather(self, gradients: Sequence[th.Tensor | None], numbers: Sequence[int]) -> None:
        """
        Lay gradients that torch computed side by side in ``gradient``.

        :param gradients: of some parameters; None where the loss does not depend on one
        :param numbers: of these parameters
        """
        self.absent.clear()
        self.unwatched = True  # a hook or a features extractor ran
        with th.no_grad():
            for i, gradient in zip(numbers, gradients, strict=True):
                if gradient is None:
                    self.absent.add(i)
                    self._gradient_places[i].zero_()
                else:
                    self._gradient_places[i].copy_(gradient.to_dense() if gradient.is_sparse else gradient)

    def gather_below(self, gradients: Sequence[th.Tensor | None], first: int, numbers: Sequence[int]) -> None:
        """
        Lay the gradients of a features extractor beside those of the layers above it, which are in ``gradient``. Where the
        extractor computes with some of these layers, too, their gradient is the sum.

        :param gradients: through the features, of the parameters from ``first`` on; None where these do not depend on one
        :param first: number of the first of them
        :param numbers: of the extractor's parameters
        """
        self.gather([gradients[i - first] for i in numbers], numbers)
        for i, gradient in enumerate(gradients, first):
            if gradient is not None and i not in numbers:
                self._gradient_places[i].add_(gradient)

    def is_of_same_kind(self) -> bool:
        """
        Whether all parameters have the shape, dtype and device that they had when the vector was made.

        :return: False if one has not
        """
        return all(
            (parameter.dtype, parameter.device) == self.kind and parameter.shape == shape
            for parameter, shape in zip(self.parameters, self.shapes, strict=True)
        )

    def push(self) -> None:
        """Give the parameters what the vector holds: call after it was changed."""
        if not self._borrowed:
            return
        with th.no_grad():
            for parameter, place in self._borrowed:
                parameter.copy_(place)

    def _take_over(self) -> bool:
        """
        Copy each parameter that has moved into the vector, and move it there if no other object holds its memory.

        :return: False if another vector is needed: a parameter is no longer of this one's kind, or is another view of this
            one's memory that another object holds too
        """
        if not self.is_of_same_kind():
            return False
        moved = [
            i
            for i, (parameter, address) in enumerate(zip(self.parameters, self._addresses, strict=True))
            if parameter.data_ptr() != address or not parameter.is_contiguous()
        ]
        held = {i for i in moved if is_held_elsewhere(self.parameters[i])}
        start = self.vector.data_ptr()
        stop = start + self.vector.numel() * self.vector.element_size()
        if any(start <= self.parameters[i].data_ptr() < stop for i in held):
            return False
        places = self.places(self.vector)
        values = [self.parameters[i].detach().clone() for i in moved]  # first all of them: two may have changed places
        for i, value in zip(moved, values, strict=True):
            parameter = self.parameters[i]
            places[i].copy_(value)
            if i not in held:
                parameter.data = with_own_storage(places[i])
            self._addresses[i] = parameter.data_ptr()
        stays = [i for i in self._borrowed_numbers if i not in moved]
        self._borrowed_numbers = sorted([*stays, *held])
        self._borrowed = [(self.parameters[i], places[i]) for i in self._borrowed_numbers]
        return True


def with_own_storage(view: th.Tensor) -> th.Tensor:
    """
    The same memory as a tensor whose storage ends where the tensor ends.

    :param view: a part of a larger vector, contiguous
    :return: a tensor of the same shape at the same address, which keeps the vector's memory alive
    """
    with th.cuda.device(view.device) if view.device.type == "cuda" else nullcontext():
        tensor: th.Tensor = from_dlpack(view)
    return tensor


def is_held_elsewhere(tensor: th.Tensor) -> bool:
    """
    Whether another object than this tensor may read or write its memory.

    :param tensor: a parameter, or a tensor of an optimizer's state
    :return: True if another tensor, an array or another process has it too, and if that cannot be told
    """
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.numel() * tensor.element_size() or (tensor.device.type == "cpu" and storage.is_shared()):
        return True
    holders = getattr(th._C, "_storage_Use_Count", None)
    return holders is None or holders(storage._cdata) > 2  # the tensor, and the object ``storage``


def _check_distinct(parameters: Sequence[nn.Parameter]) -> None:
    """
    Refuse parameters that are not separate numbers.

    :param parameters: of a policy
    :raises ValueError: if one stands there twice, or if two of them share memory
    """
    if len({id(parameter) for parameter in parameters}) != len(parameters):
        raise ValueError("A parameter of the policy stands twice in the list of those to train; name each once")
    spans = sorted(
        (str(p.device), p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), tuple(p.shape))
        for p in parameters
        if p.numel()
    )
    for (device, _, end, shape), (other_device, start, _, other_shape) in pairwise(spans):
        if device == other_device and start < end:
            raise ValueError(
                f"Two parameters of the policy, of shapes {shape} and {other_shape}, share memory, but are different objects: "
                "what one step should do to both is not defined. Tie modules by giving them one and the same Parameter "
                "(a.weight = b.weight), or copy one of them (a.weight.data = a.weight.data.clone())"
            )

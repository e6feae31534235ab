"""The linear heads of actor and critic, forward and backward, in NumPy and in torch."""

from sb3_policyopt.maths.arrays import ArrayT, column_sums, namespace, product, total
from sb3_policyopt.models.networks.layers import Layer


def actor_output(head: Layer[ArrayT], hidden: ArrayT) -> ArrayT:
    """
    z = h Wᵀ + b. The columns of z lie together in memory: NumPy sums such rows twice as fast.

    :param head: weight of shape (n, n_hidden), bias of shape (n,)
    :param hidden: the actor's last h, shape (batch, n_hidden)
    :return: shape (batch, n)
    """
    output = product(head.weight, hidden.T).T
    output += head.bias
    return output


def critic_values(head: Layer[ArrayT], hidden: ArrayT) -> ArrayT:
    """
    V = h w + b.

    :param head: weight of shape (1, n_hidden), bias of shape (1,)
    :param hidden: the critic's last h, shape (batch, n_hidden)
    :return: V, shape (batch,)
    """
    values = product(hidden, head.weight[0])
    values += head.bias
    return values


def actor_backward(
    head: Layer[ArrayT],
    hidden: ArrayT,
    slopes: tuple[ArrayT, ...],
    into: Layer[ArrayT],
    free_into: tuple[ArrayT, ...],
    h_bar: ArrayT,
) -> None:
    """
    The backward pass of the actor's head.

    :param head: as of :func:`actor_output`
    :param hidden: the actor's last h, shape (batch, n_hidden)
    :param slopes: with respect to the distributions' parameters, broadcastable to (batch, n) each
    :param into: where W̄ and b̄ are written
    :param free_into: where the slopes of the distribution's own parameters are written, shape (n,) each
    :param h_bar: where h̄ is written, shape (batch, n_hidden)
    """
    output_bar, free_bar = slopes[0], slopes[1:]
    batch = len(output_bar)
    product(output_bar.T, hidden, out=into.weight)
    column_sums(output_bar, out=into.bias[None])
    product(output_bar, head.weight, out=h_bar)
    for part, place in zip(free_bar, free_into, strict=True):
        if len(part) == batch:
            column_sums(part, out=place[None])
        else:  # one row stands for equal ones
            namespace(part).multiply(part[0], batch, out=place)


def critic_backward(head: Layer[ArrayT], hidden: ArrayT, slope: ArrayT, into: Layer[ArrayT], h_bar: ArrayT) -> None:
    """
    The backward pass of the critic's head.

    :param head: as of :func:`critic_values`
    :param hidden: the critic's last h, shape (batch, n_hidden)
    :param slope: with respect to V, shape (batch,)
    :param into: where W̄ and b̄ are written
    :param h_bar: where h̄ is written, shape (batch, n_hidden)
    """
    product(slope, hidden, out=into.weight[0])
    into.bias[0] = total(slope)
    product(slope[:, None], head.weight, out=h_bar)

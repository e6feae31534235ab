"""The arguments that a constructor takes, also those that it hands on to its bases."""

import inspect
from collections.abc import Mapping


def parameters_of(algorithm_class: type) -> Mapping[str, inspect.Parameter]:
    """
    The arguments of a constructor, with those that it hands on by ``**options``.

    :param algorithm_class: a class of an algorithm
    :return: by name, those of the class before those of its bases
    """
    found: dict[str, inspect.Parameter] = {}
    for one in algorithm_class.__mro__:
        if "__init__" not in vars(one):
            continue
        own = inspect.signature(vars(one)["__init__"]).parameters.values()
        named = [p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self"]
        found = {**{p.name: p for p in named}, **found}
        if len(named) + 1 == len(own):
            break
    return found

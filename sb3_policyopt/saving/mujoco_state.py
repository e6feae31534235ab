"""MuJoCo's structures, which are copied in place, as renderers refer to them."""

import sys

import numpy as np


def is_structure(value: object) -> bool:
    """
    Whether an object is MuJoCo's model or its data.

    :param value: any object
    :return: False where MuJoCo is not in use
    """
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(value, (mujoco.MjModel, mujoco.MjData))


def copy_structure(source: object, target: object, model: object) -> None:
    """
    Copy MuJoCo's model (which a task may vary) or its data into the structure that is in use.

    :param source: MjModel or MjData
    :param target: of the same kind and sizes
    :param model: MjModel of the environment that holds them
    """
    import mujoco

    if isinstance(source, mujoco.MjData):
        mujoco.mj_copyData(target, model, source)
        return
    _copy_fields(source, target)
    # Options such as the time step are numbers, not arrays.
    _copy_fields(getattr(source, "opt", None), getattr(target, "opt", None), numbers=True)


def _copy_fields(source: object, target: object, numbers: bool = False) -> None:
    """
    Copy the public arrays of one of MuJoCo's structures into another, in place.

    :param source: a structure
    :param target: of the same kind and sizes
    :param numbers: whether to copy single numbers, too
    """
    for name in (name for name in dir(source) if not name.startswith("_")):
        value: object = getattr(source, name)
        if isinstance(value, np.ndarray):
            getattr(target, name)[...] = value
        elif numbers and isinstance(value, (int, float)):
            setattr(target, name, value)

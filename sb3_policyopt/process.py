"""Changes to the state of this process: attributes that are replaced for a while, and rendering without a display."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """
    Within this context an attribute has another value.

    :param owner: a module, class or object that has the attribute
    :param name: name of the attribute
    :param value: its value until the end of the context
    """
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def render_without_display() -> None:
    """
    Let MuJoCo render off screen, through EGL, on a Linux machine without a display; call it before an environment is made.

    If the variable ``MUJOCO_GL`` is set already, it is left as it is.
    """
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"))):
        os.environ["MUJOCO_GL"] = "egl"

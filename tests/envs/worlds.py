"""Environments for the tests of VecEnvs, importable by worker processes."""

import copy
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SPACES: dict[str, spaces.Space[Any]] = {
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "doubles": spaces.Box(-1, 1, (2, 2), np.float64),
    "image": spaces.Box(0, 255, (6, 5, 3), np.uint8),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(4),
    "dict": spaces.Dict({"image": spaces.Box(0, 255, (3, 4), np.uint8), "number": spaces.Discrete(7)}),
    "tuple": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(3))),
}

INFOS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "nothing": lambda world: {},
    "numbers": lambda world: {"x": np.float64(world.steps) / 3, "f": np.float32(0.1), "n": np.int64(7), "b": np.True_, "i": 4},
    "nested": lambda world: {"deep": {"array": np.arange(world.steps), "text": "a", "none": None, "tuple": (1, 2.5)}},
    "sometimes": lambda world: {"lucky": True} if world.np_random.random() < 0.3 else {},
    "its own dict": lambda world: world.kept_info,
    "large": lambda world: {"frame": np.full((200, 200), world.steps)},
}


class World(gym.Env):
    """
    Random observations, rewards, ends and cuts, all from the environment's generator; remembers what it was told.

    :param observations: name in SPACES
    :param actions: name in SPACES
    :param info: name in INFOS
    :param flags: makes of a truth value what the environment returns
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 17}
    render_mode = "rgb_array"

    def __init__(
        self, observations: str = "vector", actions: str = "discrete", info: str = "nothing", flags: type[Any] = bool
    ) -> None:
        self.observation_space = copy.deepcopy(SPACES[observations])
        self.action_space = copy.deepcopy(SPACES[actions])
        self.make_info, self.flags = INFOS[info], flags
        self.kept_info: dict[str, Any] = {}
        self.last_action: Any = None
        self.options: dict[str, int] | None = None
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, int] | None = None) -> tuple[Any, ...]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.steps, self.options = 0, options
        return self.observation_space.sample(), self.make_info(self) | {"start": float(self.np_random.random())}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.steps += 1
        self.last_action = action
        if isinstance(action, np.ndarray):
            action += 1  # it is this environment's own
        ended, cut = self.np_random.random() < 0.2, self.np_random.random() < 0.2
        reward = 1.1 * self.np_random.random()
        return self.observation_space.sample(), reward, self.flags(ended), self.flags(cut), self.make_info(self)

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.steps, np.uint8)

    def told(self, plus: int = 0, *, times: int = 1) -> tuple[Any, ...]:
        """What it did last."""
        return self.last_action, times * (self.steps + plus)

    def process(self) -> int:
        """The process that it is in."""
        return os.getpid()


class Broken(gym.Env):
    """Counts its steps; before the step of a number, something happens."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fault_at: Any = None, fault: Any = None, fault_in_reset: bool = False, closed_file: Any = None) -> None:
        self.fault_at, self.fault, self.fault_in_reset, self.closed_file = fault_at, fault, fault_in_reset, closed_file
        self.total = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.fault_in_reset:
            self.fault()
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.total == self.fault_at:
            self.fault()
        self.steps += 1
        return np.full(1, self.steps, np.float32), float(action), self.steps == 7, False, {}

    def close(self) -> None:
        if self.closed_file is not None:
            with open(self.closed_file, "a") as file:
                file.write(f"{os.getpid()}\n")


class StuckError(Exception):
    """Raised by an environment."""


class UnpicklableError(Exception):
    """Raised by an environment."""

    def __init__(self, what: Any) -> None:
        super().__init__(what)
        self.lock = threading.Lock()


class JointError(Exception):
    """Its message is not what its constructor takes."""

    def __init__(self, joint: int, what: str) -> None:
        super().__init__(f"{what} at joint {joint}")
        self.joint = joint


class NoFirmwareError(OSError):
    """Its constructor takes as many arguments as it passes on, but others."""

    def __init__(self, code: int, path: str) -> None:
        super().__init__(code, f"cannot read {path}")
        self.path = path


class AxisError(ValueError):
    """Without a call of its base's constructor, as NumPy's error of this name."""

    __slots__ = ("axis",)

    def __init__(self, axis: int, n_axes: int) -> None:
        self.axis = axis

    def __str__(self) -> str:
        return f"there is no axis {self.axis}"


class KnowsHowError(StopIteration):
    """Says how it is pickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)
        self.both = first, second

    def __reduce__(self) -> Any:
        return KnowsHowError, self.both, vars(self)


class KeywordError(StopIteration):
    """Has attributes that are not in its ``__dict__``."""

    def __init__(self, *, value: int) -> None:
        super().__init__(value)


ERRORS: dict[str, Callable[[], Exception]] = {
    "message of two": lambda: JointError(3, "stuck"),
    "of the system": lambda: NoFirmwareError(2, "arm.bin"),
    "slots": lambda: AxisError(2, 1),
    "own __reduce__": lambda: KnowsHowError("a", "b"),
    "keyword": lambda: KeywordError(value=7),
    "built in": lambda: KeyError("gripper"),
    "of the system, built in": lambda: FileNotFoundError(2, "No such file", "arm.bin"),
    "decoding": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
}


def raise_error(name: str) -> None:
    error = ERRORS[name]()
    if hasattr(error, "add_note"):
        error.add_note("calibrate first")
    raise error


def raise_stuck() -> None:
    raise StuckError("the gripper is stuck")


def raise_unpicklable() -> None:
    raise UnpicklableError("the gripper is stuck")


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def hang() -> None:
    time.sleep(1000)


def nap() -> None:
    time.sleep(1.0)


START_METHODS = multiprocessing.get_all_start_methods()
FASTEST = "fork" if "fork" in START_METHODS else "spawn"


def assert_same(one: Any, other: Any) -> None:
    """Equal in value and, but for lists and tuples, in type."""
    if isinstance(one, dict):
        assert type(one) is type(other) and list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert isinstance(other, (list, tuple)) and len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert type(one) is type(other), (one, other)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
        np.testing.assert_array_equal(one, other)

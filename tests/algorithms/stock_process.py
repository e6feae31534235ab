"""
Run by test_zips.py in a process of its own: what stock SB3 does with our zips where this package cannot be imported.

Arguments: a JSON file with a list of {"cls", "path", "observations", "out"}. For each it loads the zip at "path" with the
stock class, predicts actions, writes parameters and optimizer state to "out", trains on, and saves to "path" + "_stock".
"""

import importlib.abc
import json
import sys
from typing import Any


class Blocked(importlib.abc.MetaPathFinder):
    """Makes sb3_policyopt look as if it were not installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.split(".")[0] == "sb3_policyopt":
            raise ModuleNotFoundError(f"No module named {fullname!r}")


def main() -> None:
    sys.meta_path.insert(0, Blocked())
    try:
        import sb3_policyopt  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError("the package can be imported, so that this proves nothing")

    import gymnasium as gym
    import numpy as np
    import torch as th
    from sb3_contrib import TRPO
    from stable_baselines3 import PPO

    th.set_num_threads(1)
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    for job in jobs:
        model = {"PPO": PPO, "TRPO": TRPO}[job["cls"]].load(job["path"], env=gym.make(job["env"]), device="cpu")
        actions, _ = model.predict(np.array(job["observations"], dtype=np.float32), deterministic=True)
        th.save(
            {
                "actions": actions.tolist(),
                "parameters": model.policy.state_dict(),
                "optimizer": model.policy.optimizer.state_dict(),
                "n_updates": model._n_updates,
            },
            job["out"],
        )
        before = model._n_updates
        model.learn(model.n_steps * 2)
        assert model._n_updates > before
        model.save(job["path"] + "_stock")
    assert not any(name.startswith("sb3_policyopt") for name in sys.modules)


if __name__ == "__main__":
    main()

"""
Run by test_zips_with_masks_and_memory.py in its own process: what sb3-contrib does with our zips where this package cannot be
imported. As stock_process.py, with masks and states.

Arguments: a JSON file with a list of jobs. For each the zip at "path" is loaded with sb3-contrib's class "cls", acts on
"observations" (steps, then rows) with "masks" or with the states handed on, trains on, and is saved to "path" + "_stock".
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "algorithms"))

from stock_process import Blocked


def main() -> None:
    sys.meta_path.insert(0, Blocked())
    import numpy as np
    import sb3_contrib
    import torch as th
    from sb3_contrib.common.envs import InvalidActionEnvDiscrete
    from stable_baselines3.common.env_util import make_vec_env

    th.set_num_threads(1)
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    for job in jobs:
        env = make_vec_env(InvalidActionEnvDiscrete if job["masks"] else job["env"], 2, seed=0)
        model = getattr(sb3_contrib, job["cls"]).load(job["path"], env=env, device="cpu")
        actions, states, state = [], [], None
        for step, observations in enumerate(np.array(job["observations"], np.float32)):
            named = {"action_masks": np.array(job["masks"][step])} if job["masks"] else {"state": state}
            starts = np.full(len(observations), step == 0)
            action, state = model.predict(observations, episode_start=starts, deterministic=True, **named)
            actions.append(action)
            states.append(state)
        out = {"actions": np.array(actions), "parameters": model.policy.state_dict(), "n_updates": model._n_updates}
        out |= {"states": None if job["masks"] else np.array(states), "optimizer": model.policy.optimizer.state_dict()}
        th.save(out, job["out"])
        model.learn(model.n_steps * 4)
        assert model._n_updates > out["n_updates"]
        model.save(job["path"] + "_stock")
    assert not any(name.startswith("sb3_policyopt") for name in sys.modules)


if __name__ == "__main__":
    main()

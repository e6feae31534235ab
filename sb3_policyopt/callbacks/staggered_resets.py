"""Environments that are in different parts of their episodes."""

import warnings

from stable_baselines3.common.callbacks import BaseCallback

from sb3_policyopt.parallel.launcher import rank, world_size

PASSED, LIMIT = "_elapsed_steps", "_max_episode_steps"
"""Attributes of Gymnasium's TimeLimit."""


class StaggeredResets(BaseCallback):
    """
    Stagger the first episodes, so that environments whose episodes all end at the time limit are not always in the same part
    of an episode (Bharthulwar et al. 2025, arXiv:2511.21011). Without it, rollouts that are shorter than an episode hold
    only its beginning, then only what follows, and so on.

    When a training starts, the i-th of n environments counts i/n of its time limit as passed (with ``torchrun``, of the
    environments of all ranks). Its first episode, which a ``Monitor`` reports as the short one that it is, is cut off that
    much earlier; all later ones are whole. rsl_rl's ``init_at_random_ep_len`` draws such numbers at random.

    Nothing is changed if an environment is already in the middle of an episode, as in ``learn(reset_num_timesteps=False)``
    and in a training that is resumed, and, with a warning, if an environment has no ``gymnasium.wrappers.TimeLimit``, as
    those of EnvPool and those of tensors.

    :param verbose: 1 prints the steps that count as passed
    """

    def _on_training_start(self) -> None:
        env = self.training_env
        if not (env.has_attr(PASSED) and env.has_attr(LIMIT)):
            warnings.warn(
                "StaggeredResets does nothing: it needs gymnasium.wrappers.TimeLimit around each environment, which "
                "gymnasium.make adds where an environment is registered with max_episode_steps",
                stacklevel=2,
            )
            return
        if any(env.get_attr(PASSED)):
            return
        first, n_envs = env.num_envs * rank(), env.num_envs * world_size()
        passed = [(first + i) * limit // n_envs for i, limit in enumerate(env.get_attr(LIMIT))]
        for i, n_steps in enumerate(passed):
            env.env_method("set_wrapper_attr", PASSED, n_steps, indices=i)
        if env.get_attr(PASSED) != passed:
            warnings.warn(
                "StaggeredResets does nothing: with this version of Gymnasium TimeLimit may not be the outermost wrapper; "
                "wrap each environment by stable_baselines3.common.monitor.Monitor, as make_vec_env does",
                stacklevel=2,
            )
        elif self.verbose:
            print(f"Steps of the first episodes that count as passed: {', '.join(map(str, passed))}")

    def _on_step(self) -> bool:
        return True

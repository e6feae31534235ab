"""The device of a model: the one that was given, or with ``device="auto"`` the fastest."""

from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, TypeVar, cast

import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt.parallel import launcher
from sb3_policyopt.rollout.buffers import is_of_library
from sb3_policyopt.rollout.tensors.env import is_tensor_env
from sb3_policyopt.saving.safe_zip import PathOrFile, SelfDescribing
from sb3_policyopt.setup import devices
from sb3_policyopt.setup.arguments import check_env
from sb3_policyopt.setup.buffers import new_buffer
from sb3_policyopt.setup.devices import Iteration, Machine, Passes

PlacedT = TypeVar("PlacedT", bound="Placed")


class Placed(SelfDescribing, OnPolicyAlgorithm):
    """
    An on-policy algorithm of Stable-Baselines3, where ``device="auto"`` is the device that is faster for the model.

    That is decided once the policy is built (:mod:`sb3_policyopt.setup.devices`). Everything is made in
    SB3's order, from the same random numbers. ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` and every ``th.device`` keep
    SB3's meaning, so that "cuda" without a GPU is the CPU.

    :param policy: as SB3 takes it
    :param env: as SB3 takes it
    :param device: "auto", or as torch takes it
    :param verbose: as SB3 takes it
    :param options: SB3's other arguments
    :raises ValueError: if torch has no such device
    """

    def __init__(self, policy: Any, env: Any, *, device: th.device | str, verbose: int, **options: Any) -> None:
        devices.check_name(device)
        self._device_is_auto = isinstance(device, str) and device == "auto"
        self.device_reason = f'device="{device}" was asked for'
        # SB3 would print the device before there is a policy by which to choose it.
        self._announces_device = self._device_is_auto and verbose >= 1 and Machine.here().has_gpu
        if self._announces_device:
            if isinstance(policy, str):
                self._get_policy_from_name(policy)  # a wrong name is an error before an environment is made
            if env is not None:
                env = self._wrap_env(maybe_make_env(env, verbose), verbose, options.get("monitor_wrapper", True))
        super().__init__(
            policy,
            env,
            device="cpu" if self._device_is_auto else device,
            verbose=0 if self._announces_device else verbose,
            **options,
        )
        self.verbose = verbose
        if not self._device_is_auto and self.device.type != th.device(device).type:
            self.device_reason += ", but there is no GPU"

    def _update_passes(self) -> Sequence[Passes]:
        """
        The passes of one update through the networks, by which "auto" is decided.

        :return: one pass over the rollout; the algorithms override it
        """
        size = self.n_steps * self.n_envs
        return [Passes.over(size, getattr(self, "batch_size", size), 1)]

    def _setup_model(self) -> None:
        """Build the networks and the buffer where they are to be."""
        launcher.choose_device(self.device)
        if not self._device_is_auto:
            super()._setup_model()
            return
        self.device, policy_class = th.device("cpu"), self.policy_class
        make: Callable[..., BasePolicy] = policy_class

        def build(*args: object, **kwargs: object) -> BasePolicy:
            """SB3 moves the policy to ``self.device`` once this has made it."""
            policy = make(*args, **kwargs)
            self._choose_device(policy)
            return policy

        self.policy_class = cast(type[BasePolicy], build)
        try:
            super()._setup_model()
        finally:
            self.policy_class = policy_class
        if self.device.type != "cpu":
            if self.seed is not None:  # as SB3's set_random_seed, which found the CPU here
                th.backends.cudnn.deterministic, th.backends.cudnn.benchmark = True, False
            self._move_buffer()
        if self._announces_device:
            print(f"Using {self.device} device")

    def _choose_device(self, policy: BasePolicy) -> None:
        """
        Decide what "auto" means, before anything is moved.

        :param policy: just built
        """
        update, most = self._update_passes(), getattr(self, "micro_batch_size", None)
        if most is not None:
            update = [passes.of_at_most(most) for passes in update]
        iteration = Iteration(*devices.multiplications(policy), self.n_steps, self.n_envs, update)
        kind, self.device_reason = devices.fastest(iteration, Machine.here())
        if is_tensor_env(self.env):
            kind, self.device_reason = str(self.env.device), "the environments' tensors are there"
        elif devices.is_on_gpu(policy):
            kind, self.device_reason = "cuda", "code of the policy puts tensors there"
        elif kind != "cpu" and (engine := getattr(self, "engine", "auto")) in devices.ENGINES_OF_THE_CPU:
            kind, self.device_reason = "cpu", f'engine="{engine}" serves there alone'
        self.device = th.device(kind)
        launcher.choose_device(self.device)

    def _maybe_recommend_cpu(self, mlp_class_name: str = "ActorCriticPolicy") -> None:
        """
        SB3's warning about an MlpPolicy on the GPU, unless ``device="auto"``.

        :param mlp_class_name: of the policy that it is about
        """
        if not self._device_is_auto:
            super()._maybe_recommend_cpu(mlp_class_name)

    def _move_buffer(self) -> None:
        """
        Set the device of the rollout buffer's tensors to the model's.

        One of a user's class may hold tensors itself, and is made anew there.
        """
        if is_of_library(type(self.rollout_buffer)):
            self.rollout_buffer.device = self.device
            return
        assert self.rollout_buffer_class is not None
        self.rollout_buffer = new_buffer(self, self.rollout_buffer_class)

    def move_to(self, device: th.device, reason: str) -> None:
        """
        Move a model that is not in the middle of a rollout. The parameters stay the same objects.

        :param device: where to
        :param reason: why, for the user
        """
        launcher.choose_device(device)
        self.device, self.device_reason = device, reason
        self.policy = self.policy.to(device)
        self.policy.optimizer.load_state_dict(self.policy.optimizer.state_dict())  # which moves its state to the parameters
        self._move_buffer()

    def set_parameters(
        self, load_path_or_dict: str | TensorDict | IO[bytes], exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters, as SB3 does.

        :param load_path_or_dict: a zip (a path or an open file), or parameters by name
        :param exact_match: whether all that the model has must be there
        :param device: where a zip's tensors are put before they are copied; "auto" is the model's device
        """
        super().set_parameters(
            cast(str | TensorDict, load_path_or_dict), exact_match, self.device if device == "auto" else device
        )

    @classmethod
    def load(
        cls: type[PlacedT],
        path: PathOrFile,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        safe: bool = False,
        **kwargs: object,
    ) -> PlacedT:
        """
        Load a model, from a zip that was saved on any device.

        :param path: the zip: a path, with or without ``.zip``, or an open file
        :param env: the environment to attach; it may be None to predict only
        :param device: where the model runs; "auto" is where this model is the fastest on this machine
        :param custom_objects: values for attributes by name, instead of the stored ones
        :param print_system_info: print the versions with which the model was saved
        :param force_reset: reset the environment before training goes on
        :param safe: unpickle nothing, so that a stranger's file runs no code of theirs
        :param kwargs: attributes to change
        :return: the model
        :raises PickleRequiredError: if ``safe``, and something that is needed exists only as a pickle
        :raises ValueError: if the file is no zip, ``env`` has other spaces, or torch has no such device
        """
        devices.check_name(device)
        if isinstance(device, str) and device == "auto":
            device = "cpu"  # where the tensors are read, until _setup_model has decided
            kwargs["_device_is_auto"] = True
        model = super().load(path, env, device, custom_objects, print_system_info, force_reset, safe=safe, **kwargs)
        model._take_instead({**(custom_objects or {}), **kwargs})
        return model

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """
        As SB3 wraps an environment that is given to the constructor, to ``load`` or to ``set_env``.

        :param env: an environment or a ``VecEnv``
        :param verbose: whether to say what is done
        :param monitor_wrapper: whether to add a ``Monitor``
        :return: the ``VecEnv``
        :raises TypeError: if it is no environment
        """
        check_env(env)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _take_instead(self, given: Mapping[str, object]) -> None:
        """
        What :meth:`load` was given in place of what was saved.

        :param given: attributes, which are set already
        """

    def _excluded_save_params(self) -> list[str]:
        """What depends on the machine is not saved."""
        return [*super()._excluded_save_params(), "_device_is_auto", "device_reason", "_announces_device"]

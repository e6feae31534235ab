"""
Publish agents to the Hugging Face Hub, and load them back without running anybody's code (needs the ``hub`` extra)::

    from sb3_policyopt.hub import load_from_hub, push_to_hub

    push_to_hub(model, "me/ppo-CartPole-v1")
    model, vec_normalize = load_from_hub("me/ppo-CartPole-v1")
"""

try:
    from sb3_policyopt.hub.errors import HubError
    from sb3_policyopt.hub.load import load_from_hub
    from sb3_policyopt.hub.push import push_to_hub
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"huggingface_hub", "yaml"}:
        raise
    raise ModuleNotFoundError(
        f'sb3_policyopt.hub needs {error.name}: pip install "sb3-policyopt[hub]"', name=error.name
    ) from error

__all__ = ["HubError", "load_from_hub", "push_to_hub"]

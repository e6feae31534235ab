"""The check that the optional packages of plots and doctor are installed."""

from importlib.util import find_spec


def require(*modules: str) -> None:
    """
    Check that optional modules can be imported.

    :param modules: names of top-level modules
    :raises ModuleNotFoundError: naming the missing modules and the pip line
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(f"This needs {', '.join(missing)}: pip install 'sb3-policyopt[plots]'", name=missing[0])

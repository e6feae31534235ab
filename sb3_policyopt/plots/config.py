"""What a run was asked to do: the zoo's ``config.yml`` and ``args.yml``, and our ``provenance.json``."""

import json
from pathlib import Path
from typing import Any

_NAMES = {"env_id": "env", "requested_timesteps": "n_timesteps"}
"""Facts that ``provenance.json`` knows under another name than the zoo."""


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Gather the configuration of a run.

    Files that are missing or damaged are passed over: a picture must not fail for want of a seed.

    :param folder: run folder of the zoo's layout, ``{env}_{n}/{env}/config.yml``; the files may also lie in the folder itself
    :return: the hyperparameters under their own names, and the facts of this one run, among them ``algo``, ``env``, ``seed``,
        ``finished`` where known
    """
    arguments, provenance = _read_yaml(_locate(folder, "args.yml")), _read_json(_locate(folder, "provenance.json"))
    hyperparameters = _read_yaml(_locate(folder, "config.yml")) | _dict(provenance.get("hyperparameters"))
    facts = _from_monitor(folder) | {key: arguments[key] for key in ("algo", "env", "seed") if arguments.get(key) is not None}
    if isinstance(arguments.get("n_timesteps"), int) and arguments["n_timesteps"] > 0:  # the command line has the last word
        hyperparameters["n_timesteps"] = arguments["n_timesteps"]
    plain = {_NAMES.get(key, key): value for key, value in provenance.items() if not isinstance(value, dict)}
    return hyperparameters, facts | plain


def _dict(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}


def _locate(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()), None)


def _read_json(path: Path | None) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return _dict(content)


def _from_monitor(folder: Path) -> dict[str, Any]:
    """``Monitor`` writes the environment's id into the first line of its csv file."""
    path = next(iter(sorted(folder.glob("*monitor.csv"))), None)
    try:
        first = path.read_text(encoding="utf-8").partition("\n")[0] if path else ""
        env = json.loads(first.lstrip("#") or "{}").get("env_id")
    except (OSError, ValueError, AttributeError):
        return {}
    return {"env": env} if env and env != "None" else {}


def _read_yaml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Safe, and yet reads the zoo's ``!!python/object/apply:collections.OrderedDict``."""

    def construct(loader: Any, suffix: str, node: Any) -> Any:
        if suffix == "object/apply:collections.OrderedDict":
            return dict(loader.construct_sequence(node, deep=True)[0])
        return suffix  # any other object of Python: its name is all that is safe to take

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", construct)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, ValueError, TypeError, IndexError, yaml.YAMLError):
        return {}
    return dict(content) if isinstance(content, dict) else {}

"""
The YAML of rl-zoo3, read and written without running code.

rl-zoo3 writes ``OrderedDict`` and tuples with tags that name Python objects, and reads its files with ``yaml.UnsafeLoader``.
"""

from collections.abc import Mapping
from typing import cast

import yaml

_PYTHON = "tag:yaml.org,2002:python/"


class PlainLoader(yaml.SafeLoader):
    """``SafeLoader`` with the two tags that rl-zoo3 writes and that are plain data; any other tag is an error."""


def _sequence(loader: yaml.SafeLoader, node: yaml.Node) -> list[object]:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.YAMLError(f"{node.tag} is not a sequence")
    return list(loader.construct_sequence(node, deep=True))


def _ordered_dict(loader: yaml.SafeLoader, node: yaml.Node) -> dict[str, object]:
    (pairs,) = _sequence(loader, node)
    return dict(cast("list[tuple[str, object]]", pairs))


PlainLoader.add_constructor(_PYTHON + "object/apply:collections.OrderedDict", _ordered_dict)
PlainLoader.add_constructor(_PYTHON + "tuple", _sequence)


class NamingLoader(PlainLoader):
    """The same, but another Python object is read as its name."""


NamingLoader.add_multi_constructor(_PYTHON, lambda loader, suffix, node: suffix)


def load_plain(text: str, name: str, loader: type[PlainLoader] = PlainLoader) -> dict[str, object]:
    """
    Read a YAML mapping; no code that it names is run.

    :param text: the YAML
    :param name: what to call it in an error
    :param loader: :class:`PlainLoader`, or :class:`NamingLoader` to accept other Python objects by their names
    :return: the mapping, empty if the text is
    :raises ValueError: if it is not YAML, not a mapping, or contains a Python object that the loader does not accept
    """
    try:
        mapping = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} is not plain YAML: {reason}") from error
    if mapping is None:
        return {}
    if not isinstance(mapping, dict):
        raise ValueError(f"{name} is not a YAML mapping")
    return mapping


LINE_BREAKS = "\x85\u2028\u2029"
"""Characters beyond ASCII at which a line ends."""


def dump_plain(mapping: Mapping[str, object]) -> str:
    """
    Write a mapping as YAML that any loader reads.

    :param mapping: plain data
    :return: the YAML, keys in their order
    """
    text = str(yaml.safe_dump(_plain(mapping), sort_keys=False, allow_unicode=True))
    if any(character in text for character in LINE_BREAKS):  # which PyYAML writes as they are, and reads as spaces
        text = str(yaml.safe_dump(_plain(mapping), sort_keys=False, allow_unicode=False))
    return text


def _plain(value: object) -> object:
    """The same value with every mapping as a ``dict`` and every sequence as a ``list``."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value

"""Griffe extension: docstrings in the way of Sphinx, as Markdown shows them."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Turn roles such as ``:class:`X` `` into code, and the ``::`` before a block of code into a colon."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """
        Rewrite one docstring.

        :param obj: a module, class, function or attribute
        """
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value).replace("::\n", ":\n")
            if isinstance(obj, griffe.Class) and not obj.decorators and "__init__" not in obj.members:
                # What a NamedTuple or an abstract class documents are attributes.
                obj.docstring.value = obj.docstring.value.replace(":param ", ":ivar ")

"""What an environment returns of a step beside observation, reward and end."""

from typing import Any, TypeAlias

Info: TypeAlias = dict[str, Any]
"""As gymnasium's environments return it: anything by name."""

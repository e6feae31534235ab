"""
Rows of a log that hold a rollout and the update made from it, while callbacks read the update's numbers as in SB3.

SB3 writes a row between rollout and update. So what an update records stays in ``logger.name_to_value`` throughout the next
rollout, where callbacks read it, and is written one row late; that of the last update never. Here the row is written after
the update. Then the update's numbers are recorded again in ``name_to_value``, excluded from every output, until the next
update begins. Like those of SB3, they are removed when a callback calls ``logger.dump()``.

Which update a number belongs to is marked by the type of its entry in ``logger.name_to_excluded``: recording another number
under the name replaces that entry, and a checkpoint keeps it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3.common.logger import Logger


class Earlier(tuple[str, ...]):
    """Outputs from which a number is excluded that was recorded before the last update."""


class OfUpdate(tuple[str, ...]):
    """Outputs from which a number is excluded that the last update recorded, and that is not written yet."""


class Written(tuple[str, ...]):
    """The outputs from which a number is excluded that has been written: all, whatever their names are."""

    def __contains__(self, output: object) -> bool:
        """
        Whether an output omits the number.

        :param output: its name
        :return: True
        """
        return True


@contextmanager
def recording(logger: Logger) -> Iterator[None]:
    """
    Around an update: remove the numbers of the last one that have been written, and mark those of this one.

    :param logger: SB3's
    """
    for name, excluded in list(logger.name_to_excluded.items()):
        if isinstance(excluded, Written):
            for entries in (logger.name_to_value, logger.name_to_count, logger.name_to_excluded):
                entries.pop(name, None)
        else:
            logger.name_to_excluded[name] = Earlier(excluded)
    yield
    for name, excluded in logger.name_to_excluded.items():
        if not isinstance(excluded, Earlier):
            logger.name_to_excluded[name] = OfUpdate(excluded)


@contextmanager
def readable_after(logger: Logger) -> Iterator[None]:
    """
    Around the writing of a row: keep the numbers of its update readable.

    :param logger: SB3's
    """
    values = {name: logger.name_to_value[name] for name, kind in logger.name_to_excluded.items() if isinstance(kind, OfUpdate)}
    yield
    for name, value in values.items():
        if name not in logger.name_to_value:
            logger.name_to_value[name] = value
            logger.name_to_excluded[name] = Written()

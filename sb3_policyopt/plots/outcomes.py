"""How TRPO's line searches ended, from the log of any version, or of sb3-contrib."""

import numpy as np
import pandas as pd

SUCCESS = "train/is_line_search_success"
_REFUSED = "train/line_search_"
"""Begins the columns that are 1 where the step was refused for the reason in their name."""
_WORD = "train/line_search_reason"
"""What earlier versions logged in their place: the reason as a word."""


def line_search_outcomes(log: pd.DataFrame) -> dict[str, float]:
    """
    Count how updates ended. A row that holds the mean of several updates counts as one, in fractions.

    :param log: one row per update
    :return: number of updates by outcome: "accepted", the reasons of a refusal, or "rejected" where none was logged
    """
    in_words: dict[str, float] = {}
    if _WORD in log and not pd.api.types.is_numeric_dtype(log[_WORD]):
        in_words = log[_WORD].dropna().astype(str).value_counts().to_dict()
        log = log[log[_WORD].isna()]
    success = _fractions(log, SUCCESS)
    reasons = [str(c).removeprefix(_REFUSED) for c in log if str(c).startswith(_REFUSED) and c != _WORD]
    counts = {reason: float(_fractions(log, _REFUSED + reason).sum()) for reason in reasons}
    counts["rejected"] = len(success) - float(success.sum()) - sum(counts.values())
    counts["accepted"] = float(success.sum())
    for word, number in in_words.items():
        counts[word] = counts.get(word, 0.0) + number
    return {outcome: number for outcome, number in counts.items() if number > 1e-6}


def _fractions(log: pd.DataFrame, column: str) -> np.ndarray:
    """The values of an indicator, without those that were not logged."""
    numbers = pd.to_numeric(log.get(column, pd.Series(dtype=float)), errors="coerce").to_numpy(dtype=float)
    fractions: np.ndarray = numbers[(numbers >= 0) & (numbers <= 1)]
    return fractions

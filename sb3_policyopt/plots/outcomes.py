"""The outcomes of TRPO's line searches, from the log of any version of this package or of sb3-contrib."""

import numpy as np
import pandas as pd

SUCCESS = "train/is_line_search_success"
_REJECTED = "train/line_search_"
"""Prefix of the columns that are 1 where the step was rejected for the reason in their name."""
_WORD = "train/line_search_reason"
"""The column of earlier versions: the reason as a word."""


def line_search_outcomes(log: pd.DataFrame) -> dict[str, float]:
    """
    Count the outcomes of updates. A row with the mean of several updates counts as one, in fractions.

    :param log: one row per update
    :return: number of updates by outcome: "accepted", the reasons of a rejection, or "rejected" where none was logged
    """
    in_words: dict[str, float] = {}
    if _WORD in log and not pd.api.types.is_numeric_dtype(log[_WORD]):
        in_words = log[_WORD].dropna().astype(str).value_counts().to_dict()
        log = log[log[_WORD].isna()]
    success = _fractions(log, SUCCESS)
    reasons = [str(c).removeprefix(_REJECTED) for c in log if str(c).startswith(_REJECTED) and c != _WORD]
    counts = {reason: float(_fractions(log, _REJECTED + reason).sum()) for reason in reasons}
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

"""LSTM and GRU over sequences of different lengths: forward, tangent and backward, in NumPy and in torch (R1, R2)."""

from sb3_policyopt.maths.recurrence.cell import Cell, Pass, Prepared
from sb3_policyopt.maths.recurrence.gru import GRU
from sb3_policyopt.maths.recurrence.lstm import LSTM
from sb3_policyopt.maths.recurrence.packing import Packing
from sb3_policyopt.maths.recurrence.weights import Weights
from sb3_policyopt.maths.recurrence.workspace import Workspace

CELLS: dict[str, type[Cell]] = {"lstm": LSTM, "gru": GRU}
"""The cells by the names that users give."""

__all__ = ["CELLS", "GRU", "LSTM", "Cell", "Packing", "Pass", "Prepared", "Weights", "Workspace"]

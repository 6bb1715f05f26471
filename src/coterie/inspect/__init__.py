"""What the experts of a model do with a text: recorded, counted, drawn, replayed.

record -> `Trace` (also a file) -> `Report` -> table, JSON, plots, page
"""

from coterie.inspect.recording import record, replay
from coterie.inspect.report import LayerReport, Pair, Report
from coterie.inspect.tokens import TokenCount
from coterie.inspect.trace import LayerTrace, Trace
from coterie.inspect.trace_file import read, save

__all__ = [
    "LayerReport",
    "LayerTrace",
    "Pair",
    "Report",
    "TokenCount",
    "Trace",
    "read",
    "record",
    "replay",
    "save",
]

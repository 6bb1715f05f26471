"""What silently goes wrong in checkpoints, found all at once: each finding says where, what, and what to do.

`examine` looks at a folder, `rules/` holds one function for each thing that it looks for, and `docs/doctor.md` lists
them. A file that `coterie.load` refuses is looked at as far as it can be read. Nothing in a checkpoint is executed.
"""

from coterie.doctor.examination import Report, examine
from coterie.doctor.findings import Finding, Level
from coterie.doctor.registry import RULES, Rule

__all__ = ["RULES", "Finding", "Level", "Report", "Rule", "examine"]

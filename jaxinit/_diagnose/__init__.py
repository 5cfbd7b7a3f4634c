"""Diagnoses: what initial weights do to signals and gradients, layer by layer, and what of that is a fault.

In: parameters, a function and a batch. Out: a `DiagnoseReport`, measurements with a verdict.

What is measured comes from the room below; here are numbers and words. `_verdict.py` asks `_unit_faults.py`,
`_signals.py` and `_gradients.py` for findings, each with a remedy from the room of advice, and `_remarks.py` for what
is worth a word beside them. `_finding.py` has what they share. A fault's threshold and its words stand in the file that
finds it.
"""

from jaxinit._diagnose._diagnose import diagnose as diagnose
from jaxinit._diagnose._report import DiagnoseReport as DiagnoseReport

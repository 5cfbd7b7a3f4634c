"""Diagnoses: what initial weights do to signals and gradients, layer by layer, and which of that is a fault.

In: parameters, a function and a batch. Out: a `DiagnoseReport`, measurements with a verdict.

Measurements come from `_measuring`; thresholds and words are here. `_verdict.py` asks `_unit_faults.py`,
`_signals.py` and `_gradients.py` for findings, each with a remedy from `_advice`, and `_remarks.py` for remarks that
are not faults. `_finding.py` has what they share. A fault's threshold and its words are in the file that finds it.
"""

from jaxinit._diagnose._diagnose import diagnose as diagnose
from jaxinit._diagnose._report import DiagnoseReport as DiagnoseReport

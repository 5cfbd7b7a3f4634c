"""Diagnostics: what a start does to signals and gradients, layer by layer, and what of that is a fault.

In: parameters, a function and a batch. Out: a `DiagnoseReport`, measurements with a verdict.

Measuring and judging are apart. `_diagnose.py` runs the program once forwards and once back; what is measured at a
layer stands in `_probe.py`, beside layers in `_watches.py`, at activations in `_activity.py`, of the Jacobian in
`_jacobian.py`; `_rows.py` holds what tracing knows of a layer, and `_measurements.py` all of it together. From there on
it is numbers and words: `_verdict.py` asks `_unit_faults.py`, `_signals.py` and `_gradients.py` for findings, and
`_remarks.py` for what is worth a word beside them. Who is compared with whom is decided in `_alike.py` alone, what
mends a fault in `_remedies.py`, and which start was given already in `_given.py`.
"""

from jaxinit._diagnose._diagnose import diagnose as diagnose
from jaxinit._diagnose._report import DiagnoseReport as DiagnoseReport

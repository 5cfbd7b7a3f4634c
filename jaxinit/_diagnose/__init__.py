"""Diagnostics: what a start does to signals and gradients, layer by layer."""

from jaxinit._diagnose._diagnose import diagnose as diagnose
from jaxinit._diagnose._report import DiagnoseReport as DiagnoseReport

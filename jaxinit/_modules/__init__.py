"""Modules of residual networks without normalization, for Linen and for NNX; `_residual.py` is what both share."""

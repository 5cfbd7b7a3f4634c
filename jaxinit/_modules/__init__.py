"""Modules of residual networks without normalization, for Linen and for NNX."""

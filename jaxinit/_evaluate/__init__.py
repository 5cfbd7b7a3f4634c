"""Evaluation: a program run once, with a visitor that sees the output of every layer and decides its scale.

In: what was read of a program, the values of its inputs, and a visitor. Out: the outputs, and a state for each weight.
"""

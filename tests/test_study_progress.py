"""The progress bar of a study says what it does and how long it takes, and only on a terminal."""

import contextlib
import sys

import pytest
from helpers.studies import fresh, study
from helpers.terminal import Terminal

from jaxinit._study import _study
from jaxinit._study._progress import Progress, progress_bar


class Told(Progress):
    """Records what it is told."""

    def __init__(self):
        self.said = []

    def compiling(self, start):
        self.said.append(("compiling", start))

    def training(self, start):
        self.said.append(("training", start))

    def took(self, seed_steps, rate):
        assert rate > 0
        self.said.append(seed_steps)


def test_a_study_tells_when_it_compiles_and_when_it_trains(monkeypatch):
    told = Told()
    monkeypatch.setattr(_study, "progress_bar", lambda wanted, total, done: contextlib.nullcontext(told))
    study({"a": fresh, "b": fresh}, seeds=3, progress=True)
    taken = [x for x in told.said if isinstance(x, int)]
    assert sum(taken) == 2 * 3 * 2 * 9  # starts, seeds, rates, steps
    for start in "ab":
        compiling, training = (told.said.index((what, start)) for what in ("compiling", "training"))
        assert isinstance(told.said[training + 1], int)
        assert compiling < training


def test_on_a_terminal_the_bar_says_how_long_it_takes(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar(True, 10_000, 2_000) as progress:
        progress.compiling("He")
        progress.training("He")
        progress.took(500, 2.0)
    assert "He" in terminal.getvalue()
    assert "training, 2 seed-steps/s, 1:02:30 left" in terminal.getvalue()


@pytest.mark.parametrize("wanted", [True, False])
def test_in_a_pipe_nothing_is_shown(monkeypatch, wanted):
    stream = Terminal(is_terminal=not wanted)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar(wanted, 100, 0) as progress:
        progress.compiling("He")
        progress.training("He")
        progress.took(50, 2.0)
    assert stream.getvalue() == ""

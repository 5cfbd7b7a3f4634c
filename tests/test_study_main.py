"""`python -m jaxinit`: it lists every public name, and its demo runs."""

import os
import re
import subprocess
import sys

import jax
import pytest

import jaxinit
from jaxinit import schemes
from jaxinit.__main__ import main
from jaxinit._study import demo


def test_everything_is_listed_with_a_line(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"jaxinit {jaxinit.__version__}, JAX {jax.__version__}, devices: 8 × ")
    listed = {}
    for line in lines:
        if line.startswith("  "):
            names, _, what = line.strip().partition("  ")
            listed |= dict.fromkeys(names.split(", "), what.strip())
    kinds = jaxinit.Initializer, schemes.Scheme
    for module in (jaxinit, schemes):
        for name in dir(module):
            value = getattr(module, name)
            made = isinstance(value, type) and issubclass(value, kinds) and value not in kinds
            if made or isinstance(value, jaxinit.Initializer):
                assert len(listed[name]) > 10, name
    assert lines[-1].endswith("python -m jaxinit demo")


def test_unknown_commands_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["dance"])
    assert "demo" in capsys.readouterr().err


def test_the_demonstration_is_well_formed():
    params, data = demo.params(), demo.spirals()
    assert jax.eval_shape(demo.loss_fn, params, data).shape == ()
    assert jax.eval_shape(demo.accuracy, params, data).shape == ()
    layers = jaxinit.trace_layers(params, demo.loss_fn, data)
    assert [(layer.path, layer.stacked) for layer in layers] == [("in", 1), ("hidden", demo.DEPTH), ("out", 1)]


@pytest.mark.slow
def test_the_demonstration_tells_its_story():
    """With too small or too large weights nothing is classified, with PyTorch's most points, with critical ones all."""
    command, wide = [sys.executable, "-m", "jaxinit", "demo"], os.environ | {"COLUMNS": "120"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=wide)
    assert "32 networks trained" in run.stdout
    found = {start: float(accuracy) for start, accuracy in re.findall(r"│ (\S.*?) +│ +([\d.]+) │", run.stdout)}
    assert found["normal(0.01)"] < 0.55
    assert found["normal(1)"] < 0.65
    assert 0.75 < found["PyTorch's default"] < 0.98
    assert found["orthogonal, critical"] > 0.99

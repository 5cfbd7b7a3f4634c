"""Every initializer of JAX, PyTorch and Keras has a counterpart here, which a table names."""

import jax
import pytest

import jaxinit

TORCH = {
    "calculate_gain": "gain",
    "constant_": "constant",
    "dirac_": "dirac",
    "eye_": "identity",
    "kaiming_normal_": "kaiming_normal",
    "kaiming_uniform_": "kaiming_uniform",
    "normal_": "normal",
    "ones_": "ones",
    "orthogonal_": "orthogonal",
    "sparse_": "sparse",
    "trunc_normal_": "truncated_normal",
    "uniform_": "uniform",
    "xavier_normal_": "xavier_normal",
    "xavier_uniform_": "xavier_uniform",
    "zeros_": "zeros",
}
"""Of PyTorch's own list, without deprecated names, which lack the underscore."""

KERAS = {
    "Constant": "constant",
    "GlorotNormal": "glorot_normal",
    "GlorotUniform": "glorot_uniform",
    "HeNormal": "he_normal",
    "HeUniform": "he_uniform",
    "Identity": "identity",
    "LecunNormal": "lecun_normal",
    "LecunUniform": "lecun_uniform",
    "Ones": "ones",
    "Orthogonal": "orthogonal",
    "RandomNormal": "normal",
    "RandomUniform": "uniform",
    "STFT": "stft",
    "TruncatedNormal": "truncated_normal",
    "VarianceScaling": "variance_scaling",
    "Zeros": "zeros",
    "Initializer": "Initializer",
    "get": "from_config",
    "deserialize": "from_config",
}
"""Without aliases, and without `serialize`, which is `Initializer.to_config`."""


ALIASES = {f"{name}Initializer" for name in ("Identity", "Orthogonal", "STFT")}


def public(module):
    return {name for name, value in vars(module).items() if not name.startswith("_") and callable(value)}


def without_counterpart(names, table):
    return sorted(name for name in names if table.get(name) not in jaxinit.__all__)


def test_every_name_of_jax_is_a_name_here():
    names = public(jax.nn.initializers)
    assert len(names) >= 20
    assert without_counterpart(names, {name: name for name in names}) == []


@pytest.mark.parametrize("table", [TORCH, KERAS], ids=["torch", "keras"])
def test_every_name_in_the_tables_has_a_counterpart(table):
    assert without_counterpart(table, table) == []
    assert without_counterpart([*table, "perlin"], table) == ["perlin"]


@pytest.mark.slow
def test_the_table_has_every_name_of_torch():
    init = pytest.importorskip("torch.nn.init", reason="PyTorch is not installed: pip install jaxinit[peers]")
    names = {name for name in public(init) if name.endswith("_")} | {"calculate_gain"}
    assert len(names) >= 15
    assert without_counterpart(names, TORCH) == []


@pytest.mark.slow
def test_the_table_has_every_name_of_keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras is not installed: pip install jaxinit[peers]")
    names = {name for name in public(keras.initializers) if name[0].isupper() or name in ("get", "deserialize")}
    assert len(names) >= 18
    assert without_counterpart(names - ALIASES, KERAS) == []

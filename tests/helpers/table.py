"""Every initializer with a shape that it fills; a new row is tested everywhere at once."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxinit

INITIALIZERS = [
    (jaxinit.zeros_init(), (3, 4)),
    (jaxinit.ones_init(), (3, 4)),
    (jaxinit.constant(0.1), (3, 4)),
    (jaxinit.constant(np.arange(4.0)), (3, 4)),
    (jaxinit.normal(0.02), (8, 6)),
    (jaxinit.uniform(0.5), (8, 6)),
    (jaxinit.truncated_normal(0.3, None, -1.0, 2.5), (8, 6)),
    (jaxinit.variance_scaling(1.7, "fan_geo_avg", "normal"), (8, 6)),
    (jaxinit.variance_scaling(1.7, "fan_out", "uniform", feature_group_count=2), (3, 3, 4, 6)),
    (jaxinit.glorot_uniform(), (8, 6)),
    (jaxinit.glorot_normal(batch_axis=0), (2, 8, 6)),
    (jaxinit.lecun_uniform(), (8, 6)),
    (jaxinit.lecun_normal(in_axis=(0, 1), out_axis=2), (4, 2, 6)),
    (jaxinit.he_uniform(), (3, 8, 6)),
    (jaxinit.he_normal(dtype=jnp.float32, transpose=True), (3, 3, 8, 6)),
    (jaxinit.identity(0.9), (2, 3, 4)),
    (jaxinit.dirac(2), (3, 3, 2, 6)),
    (jaxinit.sparse(3, 0.5), (3, 4, 6)),
    (jaxinit.random_walk("relu"), (8, 6)),
    (jaxinit.random_walk(jax.nn.tanh, depth=20), (16, 6)),
    (jaxinit.siren(first=True), (2, 6)),
    (jaxinit.siren(omega=20.0), (8, 6)),
    (jaxinit.zero_hadamard(), (3, 4, 6)),
    (jaxinit.hippo_legs(), (4, 4)),
    (jaxinit.hippo_legs("B"), (2, 4)),
    (jaxinit.log_uniform(1e-3, 1e-1), (8, 4)),
    (jaxinit.log_uniform(1e-3, 1e-1, "exp"), (8, 4)),
    (jaxinit.log_uniform(1e-3, 1e-1, "softplus"), (8, 4)),
    (jaxinit.lru_ring(0.5, 0.99), (8,)),
    (jaxinit.lru_ring(max_phase=0.3, part="theta"), (8,)),
    (jaxinit.lru_ring(0.5, 0.99, part="gamma"), (8,)),
    (jaxinit.rg_lru(), (8,)),
    (jaxinit.s4d(), (4, 8)),
    (jaxinit.s4d("inv", "frequency"), (8,)),
    (jaxinit.s4d("real", "A"), (8,)),
    (jaxinit.lstm_bias(), (8,)),
    (jaxinit.lstm_bias(2.0, gates="f"), (8,)),
    (jaxinit.chrono(100), (8,)),
    (jaxinit.orthogonal(), (8, 6)),
    (jaxinit.orthogonal("relu", column_axis=1, batch_axis=0), (2, 4, 5)),
    (jaxinit.delta_orthogonal(), (3, 6, 4)),
    (jaxinit.delta_orthogonal(2.0, groups=2, centre="upper"), (2, 3, 4, 6)),
    (jaxinit.scaled_uniform_orthogonal(jax.nn.tanh), (4, 8)),
    (jaxinit.looks_linear(), (8, 6)),
    (jaxinit.looks_linear(jaxinit.delta_orthogonal(), form="first"), (3, 4, 8)),
    (jaxinit.blocked(jaxinit.orthogonal(), axis=-1, blocks=4), (4, 16)),
    (jaxinit.scaled(jaxinit.he_normal(), -0.5), (8, 6)),
    (jaxinit.blocked(jaxinit.glorot_uniform(), axis=-1, blocks=3), (8, 6)),
    (jaxinit.blocked(jaxinit.scaled(jaxinit.normal(), 2.0), axis=0, blocks=(5, 3)), (8, 6)),
    (jaxinit.blocked(jaxinit.identity(), axis=-1, blocks=2), (4, 8)),
]

IDS = [f"{init!r}-{shape}" for init, shape in INITIALIZERS]

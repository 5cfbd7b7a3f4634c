"""What must be correct on the device: the law of Haar matrices, the bits of draws, and agreement with the CPU.

A row has `passed`, and the numbers it was judged by. Comparisons with the CPU are made with
`jax.default_matmul_precision("highest")`: by default a GPU multiplies float32 matrices in TF32, whose eleven bits
would hide an error of 1e-3. What users see by default is checked, too: the standard deviation of every
layer after LSUV, measured by the device's own forward pass in its default precision.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxinit
from gpu import law
from gpu.models import loss_fn, small
from gpu.record import Row
from jaxinit import haar

Rows = Iterator[tuple[str, Callable[[], Row]]]

ORTHONORMAL = {"float32": 5e-6, "float64": 1e-13, "bfloat16": 3e-2, "float16": 4e-3, "complex64": 5e-6}
"""The largest allowed entry of QᴴQ − I; half precision rounds every entry of Q."""


def haar_law(rehearse: bool) -> Rows:
    """Every method on small matrices, panels on larger ones, frames, dtypes; and a wrong sampler, to be caught."""
    many, some = (2_000, 200) if rehearse else (20_000, 2_000)
    cases: list[tuple[str, tuple[int, ...], str, str]] = [
        *(("orthogonal", (many, 5, 5), method, "float32") for method in ("reflectors", "small", "qr")),
        ("orthogonal", (some, 80, 80), "reflectors", "float32"),
        ("orthogonal", (some, 40, 34), "reflectors", "float32"),
        ("special_orthogonal", (many, 5, 5), "auto", "float32"),
        *(("unitary", (many, 4, 4), method, "complex64") for method in ("reflectors", "small")),
        *(("orthogonal", (many, 5, 5), "auto", dtype) for dtype in ("bfloat16", "float16")),
        ("orthogonal", (some, 24, 24), "reflectors", "float64"),
        ("orthogonal", (some, 3, 7), "small", "float32"),
        ("orthogonal", (some, 7, 3), "qr", "float32"),
        ("special_orthogonal", (some, 36, 36), "reflectors", "float32"),
    ]
    for index, (name, shape, method, dtype) in enumerate(cases):
        if index == 3:
            yield "QR as the library signs it is caught", functools.partial(_wrong_sampler, many)
        title = f"{name} {'×'.join(map(str, shape))}, {method}, {dtype}"
        yield title, functools.partial(_law, name, shape, method, dtype)


def _law(name: str, shape: tuple[int, ...], method: Any, dtype: str) -> Row:
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        q = getattr(haar, name)(jax.random.key(7), shape, jnp.dtype(dtype), method=method)
        host = np.asarray(q.astype(jnp.float32) if q.dtype.itemsize < 4 else q)
    claims = law.claims(host, special=name == "special_orthogonal")
    worst = min(claims, key=lambda claim: claims[claim])
    error = law.deviation(host)
    row = {"error": error, "allowed": ORTHONORMAL[dtype], "claims": len(claims), "worst": worst, "p": claims[worst]}
    passed = error <= ORTHONORMAL[dtype] and claims[worst] > law.FALSE_ALARM
    if name == "special_orthogonal":
        signs, logarithms = np.linalg.slogdet(host.astype(np.float64))
        passed &= bool((signs > 0).all() and abs(logarithms).max() < 1e-4)
    return row | {"passed": bool(passed), "false_alarm_rate": law.FALSE_ALARM * len(claims)}


def _wrong_sampler(samples: int) -> Row:
    gaussian = jax.random.normal(jax.random.key(0), (samples, 5, 5))
    claims = law.claims(jnp.linalg.qr(gaussian)[0])
    worst = min(claims, key=lambda claim: claims[claim])
    return {"passed": claims[worst] < law.POWER, "worst": worst, "p": claims[worst], "claims": len(claims)}


def numbers(rehearse: bool) -> Rows:
    """The same bits as `jax.nn.initializers` on this device, and the same numbers as on the CPU, up to rounding."""
    yield "bits of jax.nn.initializers, one program", _parity_jitted
    yield "bits of jax.nn.initializers, call by call", _parity_eager
    yield "draws as on the CPU", _draws_as_on_cpu
    shapes = [((30, 12), "reflectors"), ((100, 8, 8), "small"), ((6, 40, 40), "reflectors"), ((12, 20), "reflectors")]
    if not rehearse:
        shapes = [((700, 300), "reflectors"), ((1000, 8, 8), "small"), ((64, 40, 40), "reflectors"), *shapes[3:]]
    for shape, method in shapes:
        title = f"haar.orthogonal {'×'.join(map(str, shape))}, {method}, as on the CPU"
        yield title, functools.partial(_haar_as_on_cpu, shape, method)


def _initializers(module: Any) -> dict[str, Any]:
    return {
        "he_uniform": module.he_uniform(),
        "glorot_normal": module.glorot_normal(),
        "lecun_uniform": module.lecun_uniform(),
        "variance_scaling": module.variance_scaling(1.7, "fan_out", "normal"),
        "normal": module.normal(0.02),
        "uniform": module.uniform(0.3),
        "truncated_normal": module.truncated_normal(0.5, None, -1.0, 3.0),
        "constant": module.constant(0.3),
    }


def _different(ours: Any, theirs: Any) -> list[str]:
    return [name for name in ours if not np.array_equal(np.asarray(ours[name]), np.asarray(theirs[name]))]


def _parity_jitted() -> Row:
    def drawn(module: Any) -> Any:
        def program(key: Any) -> Any:
            return {name: init(key, (257, 129)) for name, init in _initializers(module).items()}

        return jax.jit(program)(jax.random.key(3))

    different = _different(drawn(jaxinit), drawn(jax.nn.initializers))
    return {"passed": not different, "different": different, "initializers": len(_initializers(jaxinit))}


def _parity_eager() -> Row:
    def drawn(module: Any) -> Any:
        chosen = _initializers(module)
        return {name: chosen[name](jax.random.key(5), (257, 129)) for name in ("he_uniform", "normal", "glorot_normal")}

    different = _different(drawn(jaxinit), drawn(jax.nn.initializers))
    return {"passed": not different, "different": different, "initializers": 3}


def on(device: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function of these arguments on a device, copied to the host."""
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        return jax.device_get(function(*jax.device_put(arguments, device)))


def both(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """The same on the device and on the CPU."""
    return on(jax.devices()[0], function, *arguments), on(jax.devices("cpu")[0], function, *arguments)


def far(found: Any, expected: Any, tolerance: float) -> dict[str, float]:
    """Leaf → ‖found − expected‖ / ‖expected‖, if that is above the tolerance or not a number."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    errors = {jax.tree_util.keystr(path): _distance(x, y) for (path, x), y in pairs}
    return {name: error for name, error in errors.items() if not error <= tolerance}


def _distance(x: Any, y: Any) -> float:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    # NaN means that nothing was measured; both must have it in the same places.
    if x.shape != y.shape or not np.array_equal(np.isnan(x), np.isnan(y)):
        return float("inf")
    x, y = np.nan_to_num(x), np.nan_to_num(y)
    return float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30)) if x.size else 0.0


def _judged(found: Any, expected: Any, tolerance: float) -> Row:
    errors = far(found, expected, 0.0)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    largest = max(errors.values(), default=0.0)
    return {"passed": not wrong, "tolerance": tolerance, "largest": largest, "far": dict(list(wrong.items())[:8])}


def _draws_as_on_cpu() -> Row:
    def program(key: Any) -> Any:
        return {name: init(key, (257, 129)) for name, init in _initializers(jaxinit).items()}

    return _judged(*both(jax.jit(program), jax.random.key(3)), tolerance=1e-5)


def _haar_as_on_cpu(shape: tuple[int, ...], method: Any) -> Row:
    found, expected = both(lambda key: haar.orthogonal(key, shape, method=method), jax.random.key(3))
    # If a vector is short and its first entry near zero, rounding may flip its sign; none of these keys has one.
    return _judged(found, expected, tolerance=1e-4)


def methods() -> Rows:
    """`lsuv`, `initialize` and `diagnose` on small models, against the CPU."""
    models = small()
    for name, make in models.items():
        yield f"lsuv, {name}, as on the CPU", lambda make=make: _lsuv_as_on_cpu(*make())
        if "transformer" not in name:
            yield f"lsuv, {name}, unit variance by default", lambda make=make: _unit_variance(*make())
    for name, make in models.items():
        yield f"initialize, {name}, as on the CPU", lambda make=make: _initialize_as_on_cpu(*make())
    for name, make in models.items():
        yield f"diagnose, {name}, as on the CPU", lambda make=make: _diagnose_as_on_cpu(*make())


def _start(module: Any, batch: Any) -> Any:
    """Flax's initialization, drawn on the CPU once for both devices."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        return jax.device_get(jax.jit(module.init)(*jax.device_put((jax.random.key(0), batch), cpu)))


def _lsuv_as_on_cpu(module: Any, batch: Any) -> Row:
    params = _start(module, batch)
    return _judged(*both(lambda p, x: jaxinit.lsuv(p, module.apply, x), params, batch), tolerance=1e-3)


def _unit_variance(module: Any, batch: Any) -> Row:
    """Layers' outputs as Flax captures them, in the device's default precision."""
    params = jaxinit.lsuv(_start(module, batch), module.apply, batch)

    @jax.jit
    def outputs(params: Any, batch: Any) -> Any:
        found = module.apply(params, batch, capture_intermediates=True, mutable=["intermediates"])[1]["intermediates"]
        return {name: jnp.std(layer["__call__"][0]) for name, layer in found.items() if name != "__call__"}

    stds = {name: float(std) for name, std in outputs(params, batch).items()}
    off = {name: std for name, std in stds.items() if not abs(std - 1) <= 1e-2}
    return {"passed": not off and len(stds) > 1, "tolerance": 1e-2, "layers": len(stds), "far": off}


def _initialize_as_on_cpu(module: Any, batch: Any) -> Row:
    params = _start(module, batch)

    def drawn(key: Any, params: Any, batch: Any) -> Any:
        return jaxinit.initialize(key, params, module.apply, batch)

    return _judged(*both(drawn, jax.random.key(2), params, batch), tolerance=1e-3)


def _diagnose_as_on_cpu(module: Any, batch: Any) -> Row:
    params = _start(module, batch)

    def measured(params: Any, batch: Any) -> Any:
        return jaxinit.diagnose(params, module.apply, batch, loss_fn=loss_fn)

    return _judged(*both(measured, params, batch), tolerance=1e-2)

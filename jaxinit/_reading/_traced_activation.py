"""Activations that are cut out of a program: functions that can be called and named, and whose gain can be computed.

The name is that of the function of `jax.nn` that agrees at many points, which are dense and not on a grid between −10
and 10 and go out to 10⁴, wherever both are known.
"""

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit import _program as ir
from jaxinit._caches import forgotten_by_clear
from jaxinit._numbers import NAMES, activation_function
from jaxinit._numbers import evaluate as evaluate_exactly
from jaxinit._reading import _expressions as expressions
from jaxinit._reading._expressions import ARGUMENT, Bits, Expression, Number, Parameter, Step
from jaxinit._reading._factors import Factors, factors
from jaxinit._stages import evaluated
from jaxinit._typing import Array

_COMMON = ("linear", "relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu")
_TYPICAL_SLOPE = 0.25
"""The initial slope of a parametric ReLU in He et al. (2015, arXiv:1502.01852)."""


class TracedActivation:
    """An elementwise function cut out of a program: call it, or pass it to `jaxinit.gain`.

    Random factors, such as those of dropout, enter through their moments: a call returns the mean over them, and a gain
    uses the mean square. A parameter is distributed as the elements of its leaf are, if they are known; if not, a slope
    counts as .25 and anything else as 1.

    Two are equal if they consist of the same steps, so the gain of a hundred similar layers is computed once.
    """

    def __init__(self, result: Expression, leaves: Mapping[int, np.ndarray | None] | None = None):
        self._result = result
        self._leaves = leaves or {}
        self._known: Factors | None = None

    @property
    def parameters(self) -> tuple[int, ...]:
        """The leaves of the parameters that it reads."""
        return tuple(sorted({x.leaf for x in expressions.sources(self._result) if isinstance(x, Parameter)}))

    @functools.cached_property
    def leading_factor(self) -> float:
        """The number by which the argument is multiplied before anything else; 1 if there is none."""
        factor, current = 1.0, cast(Expression, ARGUMENT)
        steps = expressions.ordered([self._result])
        while True:
            readers = [x for x in steps if isinstance(x, Step) and current in x.inputs]
            number = _multiplier(readers[0], current) if len(readers) == 1 else None
            if number is None:
                return factor
            factor, current = factor * abs(number), readers[0]

    def __call__(self, x: Array) -> Array:
        """The function of an array of any shape, computed in the precision of the array; its mean if it is random."""
        x = jnp.asarray(x)
        known = self._factors
        if not known.parts:
            return self._at(x, {})
        return jnp.tensordot(jnp.asarray(known.weights, x.dtype), self._values(x), 1)

    def second_moment(self, x: Array) -> Array:
        """The mean of the function's square over its random factors, at each element of an array."""
        x = jnp.asarray(x)
        known = self._factors
        if not known.parts:
            return self._at(x, {}) ** 2
        return jnp.tensordot(jnp.asarray(known.weights, x.dtype), self._values(x) ** 2, 1)

    def _values(self, x: Array) -> Array:
        """The function for all random factors, along a first axis."""
        known = self._factors
        along = (-1, *[1] * x.ndim)
        return self._at(
            x[None], {p: jnp.asarray(v.reshape(along)) for p, v in zip(known.parts, known.values, strict=True)}
        )

    def _at(self, x: Array, known: Mapping[Expression, Any], result: Expression | None = None) -> Array:
        (values,) = expressions.evaluate([result or self._result], {ARGUMENT: x, **known}, x.dtype)
        return jnp.broadcast_to(values, np.broadcast_shapes(x.shape, *(np.shape(v) for v in known.values())))

    @property
    def _factors(self) -> Factors:
        # Not a `cached_property`: numbers are computed in threads, which would wait for one another's lock.
        if self._known is None:
            self._known = self._found_factors()
        return self._known

    def _found_factors(self) -> Factors:
        read = {x: self._leaves.get(x.leaf) for x in expressions.sources(self._result) if isinstance(x, Parameter)}
        unknown = self._typical if any(v is None for v in read.values()) else 1.0
        return factors(self._result, {x: np.array([unknown]) if v is None else v for x, v in read.items()})

    @property
    def _typical(self) -> float:
        """The number that represents a parameter of unknown value: a slope if 1 would make the function trivial."""
        with_ones = TracedActivation(self._result, dict.fromkeys(self.parameters, np.ones(1)))
        return _TYPICAL_SLOPE if with_ones.only_multiplies else 1.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedActivation) and self._steps == other._steps

    def __hash__(self) -> int:
        return hash(self._steps)

    @functools.cached_property
    def _steps(self) -> tuple[Any, ...]:
        """All that the function depends on, without the variables of the program."""
        numbered: dict[Expression, int] = {}
        steps: list[Any] = []
        for node in expressions.ordered([self._result]):
            match node:
                case Number():
                    step: Any = (node.value.dtype.str, node.value.tobytes())
                case Bits():
                    step = ("bits", str(node.dtype))
                case Parameter():
                    known = self._leaves.get(node.leaf)
                    step = ("parameter", None if known is None else known.tobytes())
                case Step():
                    step = (*expressions.signature(node.equation), *(numbered[x] for x in node.inputs))
                case _:
                    step = ()
            numbered[node] = len(numbered)
            steps.append(step)
        return tuple(steps)

    @property
    def name(self) -> str:
        """The name of the activation it equals, or the primitives it consists of."""
        return _name(self)

    @property
    def only_multiplies(self) -> bool:
        """Whether it is x → c x for some number c."""
        values = _samples(self)
        return values is not None and _agree(values, _points() * (values[_LAST] / _points()[_LAST]))

    @property
    def spread(self) -> float:
        """The standard deviation of the function of standard normal numbers, if it only multiplies and adds."""
        assert self._result.degree == 1
        known = self._factors
        at_ends = evaluate_exactly(lambda z: (evaluated(self._values, np.asarray(z)),), np.array([0.0, 1.0]))[0]
        added, slope = at_ends[:, 0], at_ends[:, 1] - at_ends[:, 0]
        mean = known.weights @ added
        return float(np.sqrt(known.weights @ (slope**2 + (added - mean) ** 2)))

    def _known_name(self) -> str | None:
        values = _samples(self)
        if values is None:
            return None
        if self.parameters and self._is_parametric_relu():
            return "prelu"
        tolerance = self._tolerance
        names = dict.fromkeys((*_COMMON, *NAMES))
        found = next((name for name in names if _agree(values, _samples_of(name), tolerance)), None)
        return found or ("gelu" if _agree(values, _exact_gelu(), tolerance) else None)

    @property
    def _tolerance(self) -> float:
        """How far random sampling, or numbers of low precision, may move the function from the one it represents."""
        numbers = [x.value.dtype for x in expressions.ordered([self._result]) if isinstance(x, Number)]
        rounding = [2 * float(jnp.finfo(d).eps) for d in numbers if jnp.issubdtype(d, jnp.floating)]
        return max([*rounding, 1e-4 if self._factors.parts else 0.0])

    def _is_parametric_relu(self) -> bool:
        """Whether parameters are the slope of its negative half."""
        for slope in (0.375, 0.75):
            values = _samples(TracedActivation(self._result, dict.fromkeys(self.parameters, np.array([slope]))))
            points = _points()
            if values is None or not _agree(values, np.where(points > 0, points, slope * points)):
                return False
        return True

    def __repr__(self) -> str:
        return f"<{self.name}>"


@forgotten_by_clear
@functools.lru_cache(maxsize=256)
def _name(activation: TracedActivation) -> str:
    made: set[Expression] = {ARGUMENT}
    names = []
    for step in expressions.ordered([activation._result]):
        if isinstance(step, Step) and not made.isdisjoint(step.inputs):
            made.add(step)
            names += [] if expressions.keeps_numbers(step.equation) else [str(step.equation.primitive)]
    return activation._known_name() or "·".join(names)


_LAST = 1800


@functools.cache
def _points() -> np.ndarray:
    """Where functions are compared: close together, not on a grid, and far out."""
    inner = np.sort(np.mod(np.arange(1, 1802) * (5**0.5 - 1) / 2, 1.0)) * 20 - 10
    outer = np.geomspace(10.1, 9876.5, 60)
    return np.concatenate([inner, outer, -outer])


def _samples(function: Any) -> np.ndarray | None:
    """A function at these points; None if it cannot be evaluated on real numbers."""
    try:
        with np.errstate(all="ignore"):
            return np.asarray(evaluate_exactly(lambda x: (evaluated(function, np.asarray(x)),), _points())[0])
    except (TypeError, ValueError, NotImplementedError):  # primitives that do not accept real numbers
        return None


@functools.lru_cache(maxsize=len(NAMES))
def _samples_of(name: str) -> np.ndarray:
    found = _samples(activation_function(name))
    assert found is not None
    return found


@functools.cache
def _exact_gelu() -> np.ndarray:
    found = _samples(functools.partial(jax.nn.gelu, approximate=False))
    assert found is not None
    return found


def _agree(a: np.ndarray, b: np.ndarray, tolerance: float = 0.0) -> bool:
    """Whether two functions are equal; far out, where an exponential overflows, either may be undefined."""
    tolerance = max(tolerance, 1e-5)
    near = np.abs(_points()) <= 80
    known = near | (np.isfinite(a) & np.isfinite(b))
    return bool(np.allclose(a[known], b[known], rtol=tolerance, atol=tolerance / 10))


def _multiplier(step: Step, argument: Expression) -> float | None:
    """The number that a step multiplies its argument by, if it only does that."""
    if step.equation.primitive not in (ir.mul_p, ir.div_p) or len(step.inputs) != 2:
        return None
    first, second = step.inputs
    if step.equation.primitive is ir.div_p:
        return 1 / float(second.value) if isinstance(second, Number) and second.value != 0 else None
    other = second if first is argument else first
    return float(other.value) if isinstance(other, Number) and other.value != 0 else None

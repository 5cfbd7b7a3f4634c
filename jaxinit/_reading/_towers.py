"""Towers on constants: layers whose input does not come from the batch.

Coordinates, Fourier features and queries that a function closes over, and arrays of its keyword arguments, are as much
data as the batch is. A constant that multiplies a weight could also be a part of the weight, as in `x @ (e @ basis)`.
The two cases differ in what comes next: a weight is linear in its leaf, and data that meet it meet its inputs. A
nonlinearity shows that it is a tower, and so does a product of the output of another layer with its outputs, as of
queries with relative positions, and a sum with data. Leaves are data in the same way if layers use them so, as learned
queries are.
"""

from collections.abc import Callable, Mapping, Sequence

from jaxinit import _program as ir
from jaxinit._reading._bias import varying_dims
from jaxinit._reading._dependence import Dependence
from jaxinit._reading._hypernetworks import Around, layer_of
from jaxinit._reading._origin import Origin
from jaxinit._reading._rules import rule_of

# Their results go into norms, including those of weights.
_OF_NORMS = ir.family("square", "integer_pow", "abs", "sqrt", "rsqrt", "sign", "pow")


def inputs_of_towers(
    equations: Sequence[ir.Equation],
    of: Callable[[ir.Atom], Dependence],
    consumers: Mapping[ir.Atom, Sequence[ir.Equation | None]],
) -> set[ir.Atom]:
    """The values that layers use as data though they do not depend on the batch."""
    found: set[ir.Atom] = set()
    producers: dict[ir.Atom, ir.Equation] = {v: equation for equation in equations for v in equation.outputs}
    around = Around(consumers, producers, of)
    for equation in equations:
        if equation.primitive not in (ir.dot_general_p, ir.conv_p):
            continue
        if any(of(atom).data for atom in (*equation.inputs, *equation.outputs)):
            continue
        data = _data_operand(equation, [of(atom) for atom in equation.inputs])
        if data is None:
            continue
        raw = 1 in of(equation.inputs[data]).degrees.values()
        if _goes_on_as_data(equation, data, raw, around):
            found.add(equation.inputs[data])
    return found


def _data_operand(equation: ir.Equation, inputs: Sequence[Dependence]) -> int | None:
    """Which operand of a product would be data if it were the first layer of a tower."""
    kernels = [i for i, x in enumerate(inputs) if 1 in x.degrees.values()]
    if not kernels:
        return None
    if len(kernels) == 2:
        # x @ w, or w @ x for a vector x.
        ranks = [sum(n > 1 for n in atom.shape) for atom in equation.inputs]
        return 1 if ranks[0] > 1 >= ranks[1] and equation.primitive is ir.dot_general_p else 0
    return 1 - kernels[0]


def _goes_on_as_data(
    product: ir.Equation,
    data: int,
    raw: bool,
    around: Around,
) -> bool:
    """Whether a product is used like the output of a layer.

    That is, through an elementwise nonlinearity; with a bias of its features; in a sum with data; or as queries or
    keys, which are multiplied along its features with the output of a layer, and whose result weighs others by its
    exponential. Without such weights, a product of two leaves may as well be a weight that is made of two factors.
    """
    of = around.of
    start = product.outputs[0]
    queue: list[tuple[ir.Atom, Origin | None]] = [(start, Origin.of_leaf(0, start.shape))]
    features = _features(product, 1 - data)
    seen = {start}
    while queue:
        atom, origin = queue.pop()
        for equation in around.consumers.get(atom, []):
            if equation is not None and ir.subprograms(equation) and _bends_inside(equation, atom):
                return True
            if equation is None or len(equation.outputs) != 1 or equation.primitive in _OF_NORMS:
                continue
            meets = origin is not None and _meets(equation, atom, origin, features)
            if any(of(x).data for x in (*equation.inputs, *equation.outputs)):
                if origin is not None and _is_added(equation, product):
                    return True
                layers = (layer_of(x, around) for x in equation.inputs if x is not atom)
                if meets and any(x is not None for x in layers) and (not raw or _weighs(equation.outputs[0], around)):
                    return True
                continue
            if meets and _weighs(equation.outputs[0], around):
                return True
            if origin is not None and _adds_bias(equation, atom, origin, features, around):
                return True
            rule = rule_of(equation)
            if rule.elementwise and not rule.linear:
                return True
            linear = rule.is_linear_in([x is atom for x in equation.inputs]) or rule.linear == "all"
            (output,) = equation.outputs
            if linear and (rule.elementwise or rule.rearranges) and output not in seen:
                seen.add(output)
                move = rule.move(equation)
                stays = rule.elementwise and output.shape == atom.shape
                queue.append((output, origin if stays else origin and move and move(origin)))
    return False


def _bends_inside(equation: ir.Equation, value: ir.Atom) -> bool:
    """Whether a loop or a branch applies an elementwise nonlinearity to a value, at most rearranged and scaled."""
    for inner, entered in zip(ir.subprograms(equation), ir.entrances(equation), strict=False):
        body = equation.body if isinstance(equation, ir.While) else inner
        readers = body.readers
        queue = [v for v, outside in entered if outside is value]
        seen = set(queue)
        while queue:
            atom = queue.pop()
            for reader in readers.get(atom, []):
                if reader is None:
                    continue
                if ir.subprograms(reader):
                    if _bends_inside(reader, atom):
                        return True
                    continue
                alone = not any(isinstance(x, ir.Variable) for x in reader.inputs if x is not atom)
                rule = rule_of(reader)
                if not alone or len(reader.outputs) != 1 or reader.primitive in _OF_NORMS:
                    continue
                if rule.elementwise and not rule.linear:
                    return True
                if (rule.elementwise or rule.rearranges) and reader.outputs[0] not in seen:
                    seen.add(reader.outputs[0])
                    queue.append(reader.outputs[0])
    return False


def _features(product: ir.Equation, kernel: int) -> set[int]:
    """The dimensions of a product that are outputs of its kernel."""
    if product.primitive is not ir.dot_general_p:
        return set()
    (contracted, batched) = product.params["dimension_numbers"]
    free = [len(a.shape) - len(c) - len(b) for a, c, b in zip(product.inputs, contracted, batched, strict=True)]
    first = len(batched[0]) + (free[0] if kernel == 1 else 0)
    return set(range(first, first + free[kernel]))


def _meets(equation: ir.Equation, atom: ir.Atom, origin: Origin, features: set[int]) -> bool:
    """Whether an equation contracts a value along these dimensions of its source.

    Other data would be contracted along the same dimensions with a weight that is made of bases.
    """
    if equation.primitive is not ir.dot_general_p:
        return False
    (contracted, _) = equation.params["dimension_numbers"]
    axes = {f.axis for d in contracted[equation.inputs.index(atom)] for f in origin.dims[d]}
    return bool(axes) and axes <= features


def _is_added(equation: ir.Equation, product: ir.Equation) -> bool:
    """Whether an equation adds the result of a contraction to something: data, not weights, are added to data."""
    if equation.primitive not in ir.ADDITIONS:
        return False
    return product.primitive is not ir.dot_general_p or bool(product.params["dimension_numbers"][0][0])


def _adds_bias(equation: ir.Equation, atom: ir.Atom, origin: Origin, features: set[int], around: Around) -> bool:
    """Whether an equation adds a leaf that varies along exactly the features of a product, and nowhere else."""
    if equation.primitive not in ir.ADDITIONS or equation.inputs.count(atom) != 1:
        return False
    (other,) = (x for x in equation.inputs if x is not atom)
    found = around.of(other)
    if list(found.degrees.values()) != [1] or found.degrees.keys() & around.of(atom).degrees.keys():
        return False
    varying = varying_dims(found, other.shape)
    own = {d for d, dim in enumerate(origin.dims) if any(f.axis in features for f in dim)}
    return bool(varying) and varying == {d for d in own if atom.shape[d] > 1}


def _weighs(value: ir.Atom, around: Around) -> bool:
    """Whether the exponential of a value is contracted with another one, as the weights of attention are."""
    queue, seen = [(value, False)], set()
    while queue:
        entry = queue.pop()
        atom, raised = entry
        if entry in seen:
            continue
        seen.add(entry)
        for equation in around.consumers.get(atom, []):
            if equation is None or ir.subprograms(equation):
                continue
            if equation.primitive is ir.dot_general_p:
                if raised:
                    return True
            elif equation.primitive in ir.ELEMENTWISE or rule_of(equation).rearranges:
                queue.extend((v, raised or equation.primitive is ir.exp_p) for v in equation.outputs)
    return False

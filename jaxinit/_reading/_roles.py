"""The role of a leaf of the parameters, by evidence of its use; without evidence it is unknown.

Each rule is a function of one equation in which data meets a leaf, and recognises one role. Leaves are recognised by
what the program does with them: a scale multiplies a value that is normalised, or a residual branch; a running variance
goes through a root into a product with data; state is what the program returns changed and does not use otherwise.
"""

import dataclasses
from collections.abc import Callable, Sequence

from jaxinit import _program as ir
from jaxinit._reading import _mixed_with_data
from jaxinit._reading._bias import varying_dims
from jaxinit._reading._decays import multiplies_state, paces_state
from jaxinit._reading._evidence import Evidence, LeafRole, Reader, is_of_integers
from jaxinit._reading._flow import Flow, Followed, follow_move
from jaxinit._reading._layers import Use
from jaxinit._reading._neutral import neutral_value
from jaxinit._reading._products import Product, depends_on
from jaxinit._reading._residual import Skip
from jaxinit._reading._slices import roles_of_slices

KEPT = frozenset({"unknown", "unread", "state", "buffer", "decay", "slope", "quantisation scale", "low-rank factor"})
"""Roles of leaves whose value matters more than any draw."""

FROZEN = frozenset({"buffer", "quantisation scale", "adapter"})
"""Roles that are kept even if the leaf is a layer's weight."""


def leaf_roles(flow: Flow, skips: Sequence[Skip], shapes: Sequence[tuple[int, ...]]) -> list[LeafRole]:
    """The role of every leaf, except for those that are only the weight of a layer.

    Args:
      flow: of the whole program, whose first inputs are the leaves.
      skips: its skip connections.
      shapes: of the leaves.
    """
    evidence = Evidence(flow, skips, shapes)
    return [_role(evidence, leaf) for leaf in range(len(shapes))]


def _role(evidence: Evidence, leaf: int) -> LeafRole:
    """The role of a leaf: what all its uses agree on."""
    whole = _of_the_whole(evidence, leaf)
    if whole is not None:
        return whole
    readers = evidence.readers.get(leaf, [])
    quantised = next((r for u in readers if evidence.is_weight(u) and (r := _quantised(evidence, u)) is not None), None)
    if quantised is not None:
        return quantised
    if evidence.opaque.get(leaf) == _mixed_with_data.REASON and sum(n > 1 for n in evidence.shapes[leaf]) > 1:
        return LeafRole("kernel", _mixed_with_data.REASON)
    if any(len(weight.factors_with(leaf)) > 1 for weight in evidence.sums):
        return LeafRole("low-rank factor", "a factor of a term that is added to a weight")
    others = [reader for reader in readers if not evidence.is_weight(reader)]
    found = [_of_reader(evidence, reader) for reader in others]
    found = [role for role in found if role.name != "statistic"] or found
    # In a divide-and-conquer recurrence not every step shows the role.
    found = [role for role in found if role.name == "decay"] if _names(found) == {"decay", "unknown"} else found
    names = _names(found)
    if len(names) == 1 or "state" in names:
        return next(role for role in found if len(names) == 1 or role.name == "state")
    if not names and leaf in evidence.taken_as_data:
        return LeafRole("embedding", "layers use it in place of data, as learned queries are")
    if not names:
        return LeafRole("unknown", "no operation with data shows what it is")
    slices = roles_of_slices(evidence, leaf, others, lambda reader: _of_reader(evidence, reader))
    if slices:
        return LeafRole("several", "its slices have roles of their own", slices=slices)
    return LeafRole("unknown", f"it is used in several ways: {', '.join(sorted(names))}")


def _names(roles: Sequence[LeafRole]) -> set[str]:
    return {role.name for role in roles}


# Rules for a whole leaf.


def _of_the_whole(evidence: Evidence, leaf: int) -> LeafRole | None:
    bit = 1 << leaf
    reached = [i for i, found in enumerate(evidence.reached) if found & bit]
    if not reached:
        return LeafRole("unread", "no output depends on it")
    if not any(found & bit for found in evidence.trained):
        return LeafRole("buffer", "the program uses it only behind stop_gradient")
    outputs = evidence.program.outputs
    returned = all(outputs[i].shape == evidence.shapes[leaf] for i in reached)
    if (
        returned
        and len(reached) < len(outputs)
        and not any(_is_bias(evidence, u) for u in evidence.readers.get(leaf, ()))
    ):
        if not any(evidence.flow.is_data(outputs[i]) for i in reached):
            return LeafRole("unknown", "it is returned unchanged: no data meets it")
        return LeafRole("state", "the program returns it changed, and does not use it otherwise")
    return None


def _is_bias(evidence: Evidence, reader: Reader) -> bool:
    return reader.equation in evidence.bias_of or evidence.is_weight(reader)


# Rules for one use.

_Rule = Callable[[Evidence, Reader], LeafRole | None]


def _of_reader(evidence: Evidence, reader: Reader) -> LeafRole:
    if evidence.products.multiplies(reader.equation):
        rules: tuple[_Rule, ...] = (_variance, _slope, _scale, multiplies_state, _factor)
    elif reader.equation.primitive in ir.ADDITIONS:
        rules = (_mean, paces_state, _noise, _bias, _offset)
    else:
        rules = (_quantised, _kernel, _token)
    found = (rule(evidence, reader) for rule in rules)
    return next((role for role in found if role is not None), _unknown(evidence, reader))


def _variance(evidence: Evidence, reader: Reader) -> LeafRole | None:
    if not evidence.products.is_under_root(reader.atom, reader.leaf):
        return None
    return LeafRole("state", "a running variance: data is divided by its root", 1.0)


def _mean(evidence: Evidence, reader: Reader) -> LeafRole | None:
    """A running mean, subtracted before the division by the root of a variance, or together with it afterwards."""
    state = LeafRole("state", "a running mean: subtracted from data that a running variance divides", 0.0)
    if reader.equation.primitive is ir.sub_p and reader.position == 1:
        for _, following in evidence.products.moved(reader.equation.outputs[0]):
            if evidence.products.multiplies(following) and _is_standardised(evidence, evidence.products.of(following)):
                return state
    for term in _terms(evidence, reader.atom):
        if depends_on(evidence.flow, term, reader.leaf):
            others = [leaf for leaf in evidence.variances if leaf != reader.leaf]
            if reader.leaf in evidence.variances:
                return LeafRole("statistic", "part of the offset of a normalisation by running statistics")
            if any(depends_on(evidence.flow, term, leaf) for leaf in others):
                return dataclasses.replace(state, name="statistic") if _multiplies(evidence, reader.leaf) else state
    return None


def _is_standardised(evidence: Evidence, product: Product) -> bool:
    """Whether the root of a running variance is a factor of a product."""
    return any(depends_on(evidence.flow, f, leaf) for f in product.factors for leaf in evidence.variances)


def _multiplies(evidence: Evidence, leaf: int) -> bool:
    return any(evidence.products.multiplies(reader.equation) for reader in evidence.readers[leaf])


def _terms(evidence: Evidence, atom: ir.Atom) -> list[ir.Atom]:
    """The terms of a sum of functions of parameters."""
    atom = evidence.products.unmoved(atom)
    equation = evidence.flow.producer.get(atom)
    if equation is not None and equation.primitive in (*ir.ADDITIONS, ir.neg_p):
        return [term for x in equation.inputs for term in _terms(evidence, x)]
    return [atom]


def _scale(evidence: Evidence, reader: Reader) -> LeafRole | None:
    product = evidence.products.of(reader.equation)
    where = _scaled(evidence, reader, product)
    if where is None:
        return None
    name, reason = where
    start = neutral_value(evidence.flow, reader.atom, reader.leaf)
    if start is None:
        return LeafRole("unknown", f"{reason}, through a function of it that is never one")
    return LeafRole(name, reason, start)


def _scaled(evidence: Evidence, reader: Reader, product: Product) -> tuple[str, str] | None:
    """What a leaf scales, if there is evidence that it is a scale."""
    normalised = _is_standardised(evidence, product) or evidence.products.is_normalised(product, reader.equation)
    if normalised and not evidence.is_number(reader, product):
        return "scale", "multiplies a normalised value"
    named = evidence.multiplier(reader.leaf)
    if named is not None:
        return (
            named,
            "multiplies a residual branch" if named == "multiplier" else "multiplies what a branch is added to",
        )
    if evidence.products.is_residual(product):
        return "scale", "multiplies a residual branch"
    return None


def _slope(evidence: Evidence, reader: Reader) -> LeafRole | None:
    """A factor in one case of a choice that depends on the multiplied value itself."""
    products = evidence.products
    product = products.of(reader.equation)
    data = [x for x in product.factors if evidence.flow.is_data(x)]
    for following in (following for x in product.results for _, following in products.moved(x)):
        chooses = following.primitive is ir.select_p and all(map(evidence.flow.is_data, following.inputs))
        own = reader.equation.outputs[0]
        once = sum(products.is_computed_from(case, own) for case in following.inputs[1:]) == 1
        if chooses and once and any(products.is_computed_from(following.inputs[0], x) for x in data):
            return LeafRole("slope", "multiplies one case of a choice, like the slope of an activation")
    return None


def _factor(evidence: Evidence, reader: Reader) -> LeafRole:
    what = "multiplies data" if reader.degree in (1, -1) else "multiplies data through a function of it"
    return LeafRole("unknown", f"{what} that is neither normalised nor a residual branch")


def _noise(evidence: Evidence, reader: Reader) -> LeafRole | None:
    """A factor of random numbers that are added, such as the learned noise of a layer."""
    terms = [x for x in _terms(evidence, reader.atom) if depends_on(evidence.flow, x, reader.leaf)]
    if any(x in evidence.analysis.noise for x in terms):
        return LeafRole("unknown", "multiplies random numbers that are added to data")
    return None


def _bias(evidence: Evidence, reader: Reader) -> LeafRole | None:
    use = evidence.bias_of.get(reader.equation)
    if use is None or reader.degree != 1 or reader.atom not in [bias.value for bias in use.biases]:
        return None
    varying = varying_dims(evidence.analysis.of(reader.atom), reader.atom.shape)
    whole = len(reader.atom.shape) == len(reader.equation.outputs[0].shape)
    if len(varying) > 1 and not varying <= set(use.placed.values()) and whole:
        return None
    if _opens_gate(evidence, use):
        return LeafRole("gate bias", "opens a gate over positions, which multiplies data", 1.0, use)
    return LeafRole("bias", "bias", 0.0, use)


def _opens_gate(evidence: Evidence, use: Use) -> bool:
    """Whether a layer's output, unchanged, multiplies data in which its features are not the last dimension."""
    value = use.finish.outputs[0]
    features = set(use.placed.values())
    tracks = {value: {value: Followed.from_start(value.shape)}}
    while True:
        readers = evidence.products.readers.get(value, [])
        if len(readers) != 1:
            return False
        (following,) = readers
        moved = follow_move(following, tracks)
        if not moved or len(moved) != 1:
            break
        tracks.update(moved)
        (value,) = moved
    if (
        following.primitive is not ir.mul_p
        or not all(map(evidence.flow.is_data, following.inputs))
        or len(value.shape) < 2
    ):
        return False
    (track,) = tracks[value].values()
    return bool(features) and all(f.axis not in features for f in track.dims[-1])


def _offset(evidence: Evidence, reader: Reader) -> LeafRole | None:
    terms = [x for x in _terms(evidence, reader.atom) if depends_on(evidence.flow, x, reader.leaf)]
    if any(evidence.analysis.of(x).degrees.get(reader.leaf) != 1 for x in terms) and reader.degree != 1:
        return LeafRole("unknown", "added to data through a nonlinear function of it")
    if any(evidence.analysis.of(x).degrees.keys() != {reader.leaf} for x in terms):
        return LeafRole("unknown", "added to data times other parameters")
    if sum(n > 1 for n in evidence.met_shape(reader)) < 2:
        return LeafRole("offset", "added to data", 0.0)
    data = next(x for i, x in enumerate(reader.equation.inputs) if i != reader.position)
    maker = evidence.flow.producer.get(evidence.products.unmoved(data))
    if maker is not None and evidence.products.multiplies(maker):
        factors, shape = evidence.products.of(maker).factors, evidence.shapes[reader.leaf]
        if any(depends_on(evidence.flow, f, i) for f in factors for i, s in enumerate(evidence.shapes) if s == shape):
            return LeafRole("offset", "added to a value that a leaf of its shape scales", 0.0)
    return LeafRole("position", "an array added to data, such as positions")


def _quantised(evidence: Evidence, reader: Reader) -> LeafRole | None:
    """Part of a weight that is stored as integers."""
    for term in _terms(evidence, reader.atom):
        if depends_on(evidence.flow, term, reader.leaf) and is_of_integers(evidence.flow, term, len(evidence.shapes)):
            return LeafRole("quantisation scale", "turns the integers of a quantised weight into numbers")
    return None


def _kernel(evidence: Evidence, reader: Reader) -> LeafRole | None:
    """A weight whose scale cannot be set: divided by its own norm, or chosen by data."""
    if reader.equation.primitive not in ir.CONTRACTIONS or sum(n > 1 for n in evidence.shapes[reader.leaf]) < 2:
        return None
    use = evidence.use_of.get((reader.equation, reader.position))
    if use is not None and any(
        evidence.shapes[component.weight.leaf] == evidence.shapes[reader.leaf] for component in use.components
    ):
        return LeafRole("kernel", "one of two factors of a kernel")
    if reader.degree == 0 or evidence.products.normalises_itself(reader.atom):
        return LeafRole("kernel", "a kernel that is divided by its own norm")
    return None


def _token(evidence: Evidence, reader: Reader) -> LeafRole | None:
    """A learned token: joined to a sequence of data, or in place of some of it."""
    if reader.degree != 1 or reader.equation.primitive not in (ir.concatenate_p, ir.select_p):
        return None
    shape = reader.atom.shape
    along_last = reader.equation.primitive is ir.concatenate_p and reader.equation.params["dimension"] == len(shape) - 1
    met = evidence.met_shape(reader)
    if len(shape) < 2 or along_last or not met or met[-1] != shape[-1]:
        return None
    if reader.equation.primitive is ir.select_p and (
        reader.position == 0 or not any(map(evidence.flow.is_data, reader.equation.inputs[1:]))
    ):
        return None
    return LeafRole("token", "a token: joined to a sequence of data, or in place of some of it")


def _unknown(evidence: Evidence, reader: Reader) -> LeafRole:
    reason = f"data meets it in {reader.equation.primitive}, which does not show its role"
    return LeafRole("unknown", evidence.opaque.get(reader.leaf, reason))

"""What a leaf of the parameters is to the program, by evidence of its use; without evidence it is unknown.

Each rule is a function of one place where data meets a leaf, and knows one role. Leaves are found by what the program
does with them: a scale multiplies a value that is normalised, or a residual branch; a running variance goes through a
root into a product with data; state is what the program returns changed and uses for nothing else.
"""

import dataclasses
from collections.abc import Callable, Sequence

from jaxinit import _program as ir
from jaxinit._reading import _mingled
from jaxinit._reading._bias import varying_dims
from jaxinit._reading._decays import multiplies_state, paces_state
from jaxinit._reading._evidence import Evidence, LeafRole, Use, is_of_integers
from jaxinit._reading._flow import Flow, Followed, follow_move
from jaxinit._reading._layers import Site
from jaxinit._reading._neutral import neutral_value
from jaxinit._reading._products import Product, depends_on
from jaxinit._reading._residual import Skip
from jaxinit._reading._slices import roles_of_slices

KEPT = frozenset({"unknown", "unread", "state", "buffer", "decay", "slope", "quantisation scale", "low-rank factor"})
"""Roles of leaves whose value says more than any draw could."""

FROZEN = frozenset({"buffer", "quantisation scale", "adapter"})
"""Those that stay even where they are a layer's weight."""


def leaf_roles(flow: Flow, skips: Sequence[Skip], shapes: Sequence[tuple[int, ...]]) -> list[LeafRole]:
    """The role of every leaf, as far as it is not a layer's weight.

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
    uses = evidence.uses.get(leaf, [])
    quantised = next((r for u in uses if evidence.is_weight(u) and (r := _quantised(evidence, u)) is not None), None)
    if quantised is not None:
        return quantised
    if evidence.opaque.get(leaf) == _mingled.REASON and sum(n > 1 for n in evidence.shapes[leaf]) > 1:
        return LeafRole("kernel", _mingled.REASON)
    if any(len(weight.factors_with(leaf)) > 1 for weight in evidence.analysis.weights):
        return LeafRole("low-rank factor", "a factor of what is added to a weight")
    others = [use for use in uses if not evidence.is_weight(use)]
    found = [_of_use(evidence, use) for use in others]
    found = [role for role in found if role.name != "statistic"] or found
    names = {role.name for role in found}
    if len(names) == 1 or "state" in names:
        return next(role for role in found if len(names) == 1 or role.name == "state")
    if not names and leaf in evidence.taken_as_data:
        return LeafRole("embedding", "taken by layers in the place of data, as learned queries are")
    if not names:
        return LeafRole("unknown", "no operation with data shows what it is")
    slices = roles_of_slices(evidence, leaf, others, lambda use: _of_use(evidence, use))
    if slices:
        return LeafRole("several", "its slices have roles of their own", slices=slices)
    return LeafRole("unknown", f"it is used in several ways: {', '.join(sorted(names))}")


# Rules for a leaf as a whole.


def _of_the_whole(evidence: Evidence, leaf: int) -> LeafRole | None:
    bit = 1 << leaf
    reached = [i for i, found in enumerate(evidence.reached) if found & bit]
    if not reached:
        return LeafRole("unread", "no output depends on it")
    if not any(found & bit for found in evidence.trained):
        return LeafRole("buffer", "the program uses it behind stop_gradient only")
    outputs = evidence.program.outputs
    returned = all(outputs[i].shape == evidence.shapes[leaf] for i in reached)
    if returned and len(reached) < len(outputs) and not any(_is_bias(evidence, u) for u in evidence.uses.get(leaf, ())):
        if not any(evidence.flow.is_data(outputs[i]) for i in reached):
            return LeafRole("unknown", "it is an output as it is: no data meets it")
        return LeafRole("state", "the program returns it changed, and uses it for nothing else")
    return None


def _is_bias(evidence: Evidence, use: Use) -> bool:
    return use.equation in evidence.bias_of or evidence.is_weight(use)


# Rules for a use.

_Rule = Callable[[Evidence, Use], LeafRole | None]


def _of_use(evidence: Evidence, use: Use) -> LeafRole:
    if evidence.products.multiplies(use.equation):
        rules: tuple[_Rule, ...] = (_variance, _slope, _scale, multiplies_state, _factor)
    elif use.equation.primitive in ir.ADDITIONS:
        rules = (_mean, paces_state, _bias, _offset)
    else:
        rules = (_quantised, _kernel, _token)
    found = (rule(evidence, use) for rule in rules)
    return next((role for role in found if role is not None), _unknown(evidence, use))


def _variance(evidence: Evidence, use: Use) -> LeafRole | None:
    if not evidence.products.is_under_root(use.atom, use.leaf):
        return None
    return LeafRole("state", "a running variance: data is divided by its root", 1.0)


def _mean(evidence: Evidence, use: Use) -> LeafRole | None:
    """A running mean, taken off before the division by the root of a variance, or with it afterwards."""
    state = LeafRole("state", "a running mean: taken off data that a running variance divides", 0.0)
    if use.equation.primitive is ir.sub_p and use.place == 1:
        for _, reader in evidence.products.moved(use.equation.outputs[0]):
            if evidence.products.multiplies(reader) and _is_standardised(evidence, evidence.products.of(reader)):
                return state
    for term in _terms(evidence, use.atom):
        if depends_on(evidence.flow, term, use.leaf):
            others = [leaf for leaf in evidence.variances if leaf != use.leaf]
            if use.leaf in evidence.variances:
                return LeafRole("statistic", "part of the offset of a normalisation by running statistics")
            if any(depends_on(evidence.flow, term, leaf) for leaf in others):
                return dataclasses.replace(state, name="statistic") if _multiplies(evidence, use.leaf) else state
    return None


def _is_standardised(evidence: Evidence, product: Product) -> bool:
    """Whether the root of a running variance is a factor of a product."""
    return any(depends_on(evidence.flow, f, leaf) for f in product.factors for leaf in evidence.variances)


def _multiplies(evidence: Evidence, leaf: int) -> bool:
    return any(evidence.products.multiplies(use.equation) for use in evidence.uses[leaf])


def _terms(evidence: Evidence, atom: ir.Atom) -> list[ir.Atom]:
    """The terms of a sum of functions of parameters."""
    atom = evidence.products.unmoved(atom)
    equation = evidence.flow.producer.get(atom)
    if equation is not None and equation.primitive in (*ir.ADDITIONS, ir.neg_p):
        return [term for x in equation.inputs for term in _terms(evidence, x)]
    return [atom]


def _scale(evidence: Evidence, use: Use) -> LeafRole | None:
    product = evidence.products.of(use.equation)
    where = _scaled(evidence, use, product)
    if where is None:
        return None
    name, reason = where
    start = neutral_value(evidence.flow, use.atom, use.leaf)
    if start is None:
        return LeafRole("unknown", f"{reason}, by a function of it that is one for no value")
    return LeafRole(name, reason, start)


def _scaled(evidence: Evidence, use: Use, product: Product) -> tuple[str, str] | None:
    """What a leaf scales, if there is evidence that it is a scale."""
    normalised = _is_standardised(evidence, product) or evidence.products.is_normalised(product, use.equation)
    if normalised and not evidence.is_number(use, product):
        return "scale", "multiplies a normalised value"
    named = evidence.multiplier(use.leaf)
    if named is not None:
        return (
            named,
            "multiplies a residual branch" if named == "multiplier" else "multiplies what a branch is added to",
        )
    if evidence.products.is_residual(product):
        return "scale", "multiplies a residual branch"
    return None


def _slope(evidence: Evidence, use: Use) -> LeafRole | None:
    """A factor in one case of a choice that the multiplied value itself decides."""
    products = evidence.products
    product = products.of(use.equation)
    data = [x for x in product.factors if evidence.flow.is_data(x)]
    for reader in (reader for x in product.results for _, reader in products.moved(x)):
        chooses = reader.primitive is ir.select_p and all(map(evidence.flow.is_data, reader.inputs))
        own = use.equation.outputs[0]
        once = sum(products.is_computed_from(case, own) for case in reader.inputs[1:]) == 1
        if chooses and once and any(products.is_computed_from(reader.inputs[0], x) for x in data):
            return LeafRole("slope", "multiplies one case of a choice, as the slope of an activation")
    return None


def _factor(evidence: Evidence, use: Use) -> LeafRole:
    what = "multiplies data" if use.degree in (1, -1) else "multiplies data through a function of it"
    return LeafRole("unknown", f"{what} that is neither normalised nor a residual branch")


def _bias(evidence: Evidence, use: Use) -> LeafRole | None:
    site = evidence.bias_of.get(use.equation)
    if site is None or use.degree != 1 or use.atom not in [bias.value for bias in site.biases]:
        return None
    varying = varying_dims(evidence.analysis.of(use.atom), use.atom.shape)
    whole = len(use.atom.shape) == len(use.equation.outputs[0].shape)
    if len(varying) > 1 and not varying <= set(site.placed.values()) and whole:
        return None
    if _opens_gate(evidence, site):
        return LeafRole("gate bias", "opens a gate over positions, which multiplies data", 1.0, site)
    return LeafRole("bias", "bias", 0.0, site)


def _opens_gate(evidence: Evidence, site: Site) -> bool:
    """Whether what a layer gives, unchanged, multiplies data, and its features are not the last dimension there."""
    value = site.finish.outputs[0]
    features = set(site.placed.values())
    tracks = {value: {value: Followed.from_start(value.shape)}}
    while True:
        readers = evidence.products.readers.get(value, [])
        if len(readers) != 1:
            return False
        (reader,) = readers
        moved = follow_move(reader, tracks)
        if not moved or len(moved) != 1:
            break
        tracks.update(moved)
        (value,) = moved
    if reader.primitive is not ir.mul_p or not all(map(evidence.flow.is_data, reader.inputs)) or len(value.shape) < 2:
        return False
    (track,) = tracks[value].values()
    return bool(features) and all(f.axis not in features for f in track.dims[-1])


def _offset(evidence: Evidence, use: Use) -> LeafRole | None:
    terms = [x for x in _terms(evidence, use.atom) if depends_on(evidence.flow, x, use.leaf)]
    if any(evidence.analysis.of(x).degrees.get(use.leaf) != 1 for x in terms) and use.degree != 1:
        return LeafRole("unknown", "added to data as a function of it that is not linear")
    if any(evidence.analysis.of(x).degrees.keys() != {use.leaf} for x in terms):
        return LeafRole("unknown", "added to data times other parameters")
    if sum(n > 1 for n in evidence.met_shape(use)) < 2:
        return LeafRole("offset", "added to data", 0.0)
    data = next(x for i, x in enumerate(use.equation.inputs) if i != use.place)
    maker = evidence.flow.producer.get(evidence.products.unmoved(data))
    if maker is not None and evidence.products.multiplies(maker):
        factors, shape = evidence.products.of(maker).factors, evidence.shapes[use.leaf]
        if any(depends_on(evidence.flow, f, i) for f in factors for i, s in enumerate(evidence.shapes) if s == shape):
            return LeafRole("offset", "added to a value that a leaf of its shape scales", 0.0)
    return LeafRole("position", "an array added to data, such as positions")


def _quantised(evidence: Evidence, use: Use) -> LeafRole | None:
    """Part of a weight that is made of integers."""
    for term in _terms(evidence, use.atom):
        if depends_on(evidence.flow, term, use.leaf) and is_of_integers(evidence.flow, term, len(evidence.shapes)):
            return LeafRole("quantisation scale", "turns the integers of a quantised weight into numbers")
    return None


def _kernel(evidence: Evidence, use: Use) -> LeafRole | None:
    """A weight whose scale nothing can set: divided by its own norm, or chosen by data."""
    if use.equation.primitive not in ir.CONTRACTIONS or sum(n > 1 for n in evidence.shapes[use.leaf]) < 2:
        return None
    site = evidence.site_of.get((use.equation, use.place))
    if site is not None and any(evidence.shapes[part.weight.leaf] == evidence.shapes[use.leaf] for part in site.parts):
        return LeafRole("kernel", "one of two factors of a kernel")
    if use.degree == 0 or evidence.products.normalises_itself(use.atom):
        return LeafRole("kernel", "a kernel that is divided by its own norm")
    return None


def _token(evidence: Evidence, use: Use) -> LeafRole | None:
    """A learned token: joined to a sequence of data, or in the place of some of it."""
    if use.degree != 1 or use.equation.primitive not in (ir.concatenate_p, ir.select_p):
        return None
    shape = use.atom.shape
    along_last = use.equation.primitive is ir.concatenate_p and use.equation.params["dimension"] == len(shape) - 1
    met = evidence.met_shape(use)
    if len(shape) < 2 or along_last or not met or met[-1] != shape[-1]:
        return None
    if use.equation.primitive is ir.select_p and (
        use.place == 0 or not any(map(evidence.flow.is_data, use.equation.inputs[1:]))
    ):
        return None
    return LeafRole("token", "a token: joined to a sequence of data, or in the place of some of it")


def _unknown(evidence: Evidence, use: Use) -> LeafRole:
    reason = f"data meets it in {use.equation.primitive}, which does not say what it is"
    return LeafRole("unknown", evidence.opaque.get(use.leaf, reason))

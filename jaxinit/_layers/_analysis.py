"""Which operations of a program are layers, of which weights, and which weights share a scale.

One walk in execution order carries the dependence of every value (see `_dependence`) and records each operation between
data and a weight as a site. Sites that read the same part of a leaf belong to one unit: the smallest part of the
parameters that can be scaled by itself.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from jaxinit._layers import _dependence as dependence
from jaxinit._layers import _jaxpr as ir
from jaxinit._layers._dependence import DATA, INDEPENDENT, Dependence
from jaxinit._layers._geometry import Geometry, geometry
from jaxinit._layers._origin import FOREIGN, Factor, Origin


@dataclasses.dataclass(eq=False)
class Unit:
    """A part of a leaf that is scaled by itself.

    Attributes:
      leaf: index of the leaf.
      region: (start, stop) along each axis of the leaf.
      stack: factors of the leaf that enclosing scans walk along; the unit has a scale for each step.
      sites: the operations that use it, in execution order.
      refused: why it must keep its scale, or None.
      index: its place in order of first use; units sort by it, so that they can be keys of a pytree.
    """

    leaf: int
    region: tuple[tuple[int, int], ...]
    stack: tuple[Factor, ...]
    sites: "list[Site]" = dataclasses.field(default_factory=list)
    refused: str | None = None
    index: int = 0

    @property
    def uses(self) -> int:
        """How often one pass through the program uses it; for a stacked unit, each of its slices."""
        return sum(site.repeats for site in self.sites)

    def __lt__(self, other: "Unit") -> bool:
        return self.index < other.index


@dataclasses.dataclass(eq=False)
class Part:
    """The share of one leaf in the weight of a site: all of it, or a segment of a concatenation.

    Attributes:
      unit: the part of the leaf.
      dependence: how the weight, or the segment, depends on the leaves.
      fan_out: connections out of a unit of its input.
      start, size: the segment along the concatenation; no size if there is none.
    """

    unit: Unit
    dependence: Dependence
    fan_out: int | float
    start: int = 0
    size: int | None = None

    @property
    def origin(self) -> Origin | None:
        """Where the elements come from, if known."""
        return self.dependence.origins.get(self.unit.leaf)


@dataclasses.dataclass(eq=False)
class Site:
    """One operation between data and a weight.

    Attributes:
      equation, weight: the operation, and which of its inputs is the weight.
      geometry: the roles of the weight's dimensions.
      parts: the units that the weight is made of.
      finish: the equation whose output is the pre-activation: the operation itself, or the addition of a bias to it.
      bias: the bias, if one is added.
      bias_dims: the dimensions of that output along which a bias may vary.
      placed: dimension of the weight → dimension of the output of `finish`.
      segment_dim: the dimension of that output along which the parts lie.
      repeats: how often one pass through the program executes it for each of its unit's scales.
    """

    equation: ir.Equation
    weight: int
    geometry: Geometry
    parts: list[Part]
    finish: ir.Equation
    bias: ir.Atom | None
    bias_dims: frozenset[int]
    placed: dict[int, int]
    segment_dim: int | None
    repeats: int

    @property
    def data(self) -> ir.Atom:
        """What the weight is applied to."""
        return self.equation.inputs[1 - self.weight]


@dataclasses.dataclass
class Analysis:
    """What the walk found.

    Attributes:
      program: the program, whose first inputs are the leaves of the parameters.
      dependences: what each variable depends on.
      sites: the layers in execution order, by the equation that finishes each.
      units: the parts of the parameters that are scaled by themselves, in order of first use.
      opaque: leaves that enter a program which is not read, and why.
      reads: (leaf, origin, degree, number of sites before it) for each other place where data meets a leaf.
      read_leaves: the leaves that an output depends on.
    """

    program: ir.Program
    dependences: dict[ir.Variable, Dependence]
    sites: dict[ir.Equation, Site]
    units: list[Unit]
    opaque: list[tuple[int, str]]
    reads: list[tuple[int, Origin | None, float | None, int]]
    read_leaves: set[int]

    def of(self, atom: ir.Atom) -> Dependence:
        """What a value depends on."""
        return INDEPENDENT if isinstance(atom, ir.Constant) else self.dependences.get(atom, INDEPENDENT)


@dataclasses.dataclass
class _Loop:
    """An enclosing scan: its length, and the leaves it walks along."""

    length: int
    leaves: frozenset[int]


def analyse(program: ir.Program, leaf_count: int) -> Analysis:
    """Walks a program whose first `leaf_count` inputs are the leaves of the parameters; the others are data."""
    inputs = [dependence.of_leaf(i, v.shape) if i < leaf_count else DATA for i, v in enumerate(program.inputs)]
    shapes = [v.shape for v in program.inputs[:leaf_count]]
    walk = _Walk(shapes)
    walk.program(program, inputs, ())
    for atom in program.outputs:
        walk.read_leaves |= set(walk.of(atom).degrees)
    return Analysis(
        program, walk.dependences, walk.sites, walk.finished_units(), walk.opaque, walk.reads, walk.read_leaves
    )


class _Walk:
    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self.shapes = shapes
        self.dependences: dict[ir.Variable, Dependence] = {}
        self.sites: dict[ir.Equation, Site] = {}
        self.units: list[Unit] = []
        self.opaque: list[tuple[int, str]] = []
        self.read_leaves: set[int] = set()
        self.reads: list[tuple[int, Origin | None, float | None, int]] = []
        self.recording = True

    def of(self, atom: ir.Atom) -> Dependence:
        return INDEPENDENT if isinstance(atom, ir.Constant) else self.dependences[atom]

    def known_so_far(self, atom: ir.Atom) -> Dependence:
        """As `of`; what has not been walked yet depends on data."""
        return INDEPENDENT if isinstance(atom, ir.Constant) else self.dependences.get(atom, DATA)

    def program(self, program: ir.Program, inputs: Sequence[Dependence], loops: tuple[_Loop, ...]) -> list[Dependence]:
        self.dependences.update(zip(program.inputs, inputs, strict=True))
        consumers = _consumers(program)
        # What depends on no data comes first, so that a bias is known when its layer asks for it.
        late: list[ir.Equation] = []
        unknown: set[ir.Atom] = set()
        for equation in program.equations:
            if unknown.isdisjoint(equation.inputs):
                arguments = [self.of(atom) for atom in equation.inputs]
                if not any(x.data for x in arguments) and _weight_operand(equation, arguments) is None:
                    results = self.equation(equation, arguments, loops, consumers)
                    self.dependences.update(zip(equation.outputs, results, strict=True))
                    continue
            unknown.update(equation.outputs)
            late.append(equation)
        for equation in late:
            arguments = [self.of(atom) for atom in equation.inputs]
            results = self.equation(equation, arguments, loops, consumers)
            self.dependences.update(zip(equation.outputs, results, strict=True))
        return [self.of(atom) for atom in program.outputs]

    def equation(
        self,
        equation: ir.Equation,
        arguments: list[Dependence],
        loops: tuple[_Loop, ...],
        consumers: dict[ir.Atom, list[ir.Equation | None]],
    ) -> list[Dependence]:
        match equation:
            case ir.Scan():
                return self.scan(equation, arguments, loops)
            case ir.Switch():
                return self.switch(equation, arguments, loops)
            case ir.While():
                return self.loop(equation, arguments, loops)
        site = self.site(equation, arguments, loops, consumers)
        results = dependence.apply(equation, arguments)
        if site or any(x.data for x in arguments):
            self.note_reads(equation, arguments, site)
        if site:
            return [DATA] * len(equation.outputs)
        return results

    # Structured control flow

    def scan(self, equation: ir.Scan, arguments: list[Dependence], loops: tuple[_Loop, ...]) -> list[Dependence]:
        consts = arguments[: equation.num_consts]
        carry = arguments[equation.num_consts : equation.num_consts + equation.num_carry]
        stacked = arguments[equation.num_consts + equation.num_carry :]
        slices = [_unstacked(x) for x in stacked]
        leaves = frozenset(leaf for x in stacked for leaf in x.degrees)
        inner = (*loops, _Loop(equation.length, leaves))

        def step(carry: list[Dependence]) -> list[Dependence]:
            return self.program(equation.body, [*consts, *carry, *slices], inner)

        initial, carry = carry, self.fixpoint(step, carry)
        self.note_mixed(initial, carry)
        results = step(carry)
        return [*carry, *(_stacked(x) for x in results[equation.num_carry :])]

    def loop(self, equation: ir.While, arguments: list[Dependence], loops: tuple[_Loop, ...]) -> list[Dependence]:
        first, second = equation.condition_consts, equation.condition_consts + equation.body_consts
        condition_consts, consts, carry = arguments[:first], arguments[first:second], arguments[second:]
        # How often it runs, only the data knows: twice stands for more than once.
        inner = (*loops, _Loop(2, frozenset()))

        def step(carry: list[Dependence]) -> list[Dependence]:
            return self.program(equation.body, [*consts, *carry], inner)

        initial, carry = carry, self.fixpoint(step, carry)
        self.note_mixed(initial, carry)
        self.program(equation.condition, [*condition_consts, *carry], loops)
        step(carry)
        return carry

    def switch(self, equation: ir.Switch, arguments: list[Dependence], loops: tuple[_Loop, ...]) -> list[Dependence]:
        index, *operands = arguments
        results: list[Dependence] | None = None
        for branch in equation.branches:
            outputs = self.program(branch, operands, loops)
            results = (
                outputs if results is None else [dependence.joined(a, b) for a, b in zip(results, outputs, strict=True)]
            )
        assert results is not None
        return [DATA if index.data else x for x in results]

    def fixpoint(
        self, step: Callable[[list[Dependence]], list[Dependence]], carry: list[Dependence]
    ) -> list[Dependence]:
        """The dependence of a loop's carry that holds for every iteration."""
        recording, self.recording = self.recording, False
        while True:
            after = [dependence.joined(a, b) for a, b in zip(carry, step(carry), strict=False)]
            if after == carry:
                break
            carry = after
        self.recording = recording
        return carry

    # Sites

    def site(
        self,
        equation: ir.Equation,
        arguments: list[Dependence],
        loops: tuple[_Loop, ...],
        consumers: dict[ir.Atom, list[ir.Equation | None]],
    ) -> Site | None:
        found = _weight_operand(equation, arguments)
        if found is None:
            return None
        weight, shape = found
        segments = arguments[weight].segments
        if segments and segments.dimension not in shape.out_dims:
            return None
        finish, bias, output = _finish(equation, consumers, shape, self.known_so_far)
        placed = {d: output[p] for d, p in shape.placed.items() if p in output}
        parts = []
        start = 0
        for i, value in enumerate(arguments[weight].parts):
            size = segments.sizes[i] if segments else None
            leaf = self.weight_leaf(value)
            if leaf is not None:
                unit = self.unit(leaf, value, loops)
                fan_out = shape.fan_out
                if segments and size is not None:
                    whole = equation.inputs[weight].shape[segments.dimension]
                    fan_out = fan_out * size // whole
                parts.append(Part(unit, value, fan_out, start, size))
            start += size or 0
        if not parts:
            return None
        segment_dim = placed.get(segments.dimension) if segments else None
        if segments and segment_dim is None:
            return None
        walked = {loop_index for part in parts for loop_index in _walked(part.unit.leaf, loops)}
        repeats = 1
        for i, loop in enumerate(loops):
            repeats *= 1 if i in walked else loop.length
        site = Site(
            equation, weight, shape, parts, finish, bias, frozenset(placed.values()), placed, segment_dim, repeats
        )
        if self.recording:
            self.sites[finish] = site
            for part in parts:
                part.unit.sites.append(site)
        return site

    def weight_leaf(self, value: Dependence) -> int | None:
        """The leaf that carries the scale: of those in which the value is homogeneous of degree one, the largest."""
        leaves = [leaf for leaf, degree in value.degrees.items() if degree == 1]
        return max(leaves, key=lambda leaf: (leaf in value.origins, _size(self.shapes[leaf]), -leaf), default=None)

    def unit(self, leaf: int, value: Dependence, loops: tuple[_Loop, ...]) -> Unit:
        origin = value.origins.get(leaf)
        walked = any(leaf in loop.leaves for loop in loops)
        region = origin.region if origin else tuple((0, n) for n in self.shapes[leaf])
        stack = origin.stack if origin else ()
        unit = next((u for u in self.units if (u.leaf, u.region, u.stack) == (leaf, region, stack)), None)
        if unit is None:
            unit = Unit(leaf, region, stack)
            if origin is None and walked:
                unit.refused = "its slices are mixed inside a scan, so that no slice can be told from the others"
            if self.recording:
                self.units.append(unit)
        return unit

    def note_reads(self, equation: ir.Equation, arguments: list[Dependence], site: Site | None) -> None:
        """Remembers which leaves data meets here, other than as the weight of a layer."""
        if not self.recording:
            return
        weights = {part.unit.leaf for part in site.parts} if site else set()
        for i, value in enumerate(arguments):
            self.read_leaves |= set(value.degrees)
            if ir.holds_program(equation):
                reason = f"it enters {equation.primitive}, whose program is not read"
                self.opaque.extend((leaf, reason) for leaf, degree in value.degrees.items() if degree != 0)
            for part in value.parts:
                for leaf, degree in part.degrees.items():
                    is_weight = site is not None and i == site.weight and leaf in weights and degree == 1
                    if degree != 0 and not is_weight:
                        self.reads.append((leaf, part.origins.get(leaf), degree, len(self.sites)))

    def note_mixed(self, before: Sequence[Dependence], after: Sequence[Dependence]) -> None:
        """A carry that starts as parameters and goes on as data reads the parameters."""
        for x, y in zip(before, after, strict=True):
            if self.recording and y.data and not x.data:
                self.read_leaves |= set(x.degrees)
                self.reads.extend(
                    (leaf, x.origins.get(leaf), d, len(self.sites)) for leaf, d in x.degrees.items() if d != 0
                )

    # Afterwards

    def finished_units(self) -> list[Unit]:
        """The units, those merged that share elements, with the reasons why some cannot be scaled."""
        units: list[Unit] = []
        for unit in self.units:
            clash = [u for u in units if u.leaf == unit.leaf and _overlap(u.region, unit.region)]
            for other in clash:
                if other.stack != unit.stack:
                    unit.refused = unit.refused or other.refused or ("it is used both as a whole and slice by slice")
                unit.region = tuple(
                    (min(a, c), max(b, d)) for (a, b), (c, d) in zip(unit.region, other.region, strict=True)
                )
                unit.refused = unit.refused or other.refused
                for site in other.sites:
                    for part in site.parts:
                        if part.unit is other:
                            part.unit = unit
                unit.sites = [*other.sites, *(s for s in unit.sites if s not in other.sites)]
                units.remove(other)
            units.append(unit)
        order = {site: i for i, site in enumerate(self.sites.values())}
        for unit in units:
            unit.sites.sort(key=order.__getitem__)
            first = order[unit.sites[0]]
            for leaf, origin, degree, position in self.reads:
                if leaf != unit.leaf or (origin and not _overlap(origin.region, unit.region)):
                    continue
                if degree is None:
                    unit.refused = unit.refused or "elsewhere the program uses it in a way that is not homogeneous"
                elif position <= first:
                    unit.refused = unit.refused or "the program reads it before the first layer that uses it"
        units.sort(key=lambda unit: (order[unit.sites[0]], _first_part(unit)))
        for index, unit in enumerate(units):
            unit.index = index
        return units


def _first_part(unit: Unit) -> int:
    return next(i for i, part in enumerate(unit.sites[0].parts) if part.unit is unit)


def _weight_operand(equation: ir.Equation, arguments: Sequence[Dependence]) -> tuple[int, Geometry] | None:
    """Which input of an equation is a weight, and the roles of its dimensions."""
    for i, value in enumerate(arguments):
        if value.data or not any(1 in part.degrees.values() for part in value.parts):
            continue
        others = [x for j, x in enumerate(arguments) if j != i]
        lookup = equation.primitive in (ir.gather_p, ir.dynamic_slice_p)
        if not any(x.data for x in others) and not (lookup and equation.primitive is ir.gather_p):
            continue
        shape = geometry(equation, i, others[0])
        if shape is not None:
            return i, shape
    return None


def _finish(
    equation: ir.Equation,
    consumers: dict[ir.Atom, list[ir.Equation | None]],
    shape: Geometry,
    of: Callable[[ir.Atom], Dependence],
) -> tuple[ir.Equation, ir.Atom | None, dict[int, int]]:
    """The equation that ends a layer: the addition of its bias, if one follows, or the operation itself.

    Also where each dimension of the operation's output lies in that of the end.
    """
    plain = (equation, None, {d: d for d in range(len(equation.outputs[0].shape))})
    if shape.kind == "embed":
        return plain
    value, next_equation = equation.outputs[0], equation
    origin: Origin | None = Origin.of_leaf(0, value.shape)
    while origin is not None:
        following = consumers.get(value, [])
        if len(following) != 1 or following[0] is None:
            return plain
        next_equation = following[0]
        if next_equation.primitive is ir.add_p:
            break
        rearrangement = dependence.rearrangement(next_equation)
        if rearrangement is None or next_equation.inputs[0] is not value:
            return plain
        origin, value = rearrangement(origin), next_equation.outputs[0]
    if origin is None:
        return plain
    bias = next((atom for atom in next_equation.inputs if atom is not value), None)
    # A bias lies along the features of the output and is the same everywhere else.
    places = _places(origin)
    allowed = {places[p] for p in shape.placed.values() if p in places}
    if bias is None or not places or not _is_bias(of(bias), allowed):
        return plain
    return next_equation, bias, places


def _places(origin: Origin) -> dict[int, int]:
    """Dimension of the source → dimension of the rearranged value that holds all of it and nothing else."""
    return {dim[0].axis: d for d, dim in enumerate(origin.dims) if len(dim) == 1 and dim[0].stride == 1}


def _is_bias(value: Dependence, dims: Iterable[int]) -> bool:
    if value.data or not any(part.degrees for part in value.parts):
        return False
    allowed = set(dims)
    for part in value.parts:
        if not part.origins and part.degrees:
            return False
        for origin in part.origins.values():
            varying = {d for d, dim in enumerate(origin.dims) if any(f.axis != FOREIGN for f in dim)}
            if not varying <= allowed:
                return False
    return True


def _consumers(program: ir.Program) -> dict[ir.Atom, list[ir.Equation | None]]:
    """The equations that read each value; None stands for the outputs of the program."""
    consumers: dict[ir.Atom, list[ir.Equation | None]] = {}
    for equation in program.equations:
        for atom in equation.inputs:
            consumers.setdefault(atom, []).append(equation)
    for atom in program.outputs:
        consumers.setdefault(atom, []).append(None)
    return consumers


def _unstacked(x: Dependence) -> Dependence:
    """One slice of a scan's stacked input."""
    if x.data or not x.degrees:
        return x
    if x.segments:
        return dependence.inhomogeneous([x])
    moved = {leaf: origin.unstacked() for leaf, origin in x.origins.items()}
    origins = {leaf: origin for leaf, origin in moved.items() if origin is not None}
    return Dependence(degrees=x.degrees, origins=origins)


def _stacked(x: Dependence) -> Dependence:
    """All slices of a scan's stacked output."""
    return dependence.DATA if x.data else dependence.inhomogeneous([x])


def _walked(leaf: int, loops: Sequence[_Loop]) -> list[int]:
    return [i for i, loop in enumerate(loops) if leaf in loop.leaves]


def _overlap(a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]]) -> bool:
    return all(x[0] < y[1] and y[0] < x[1] for x, y in zip(a, b, strict=True))


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size

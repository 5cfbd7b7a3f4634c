"""The house: floors import downwards only, no two files need each other, and rooms are entered by their doors."""

import ast
import re
from pathlib import Path

import jaxinit

PACKAGE = Path(jaxinit.__file__).parent
MODULES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}

# From the ground up; whatever is named nowhere lies on the ground floor.
FLOORS = (
    ("_typing", "_public", "_caches", "_tabular", "_checks", "_arrays", "_numbers"),
    ("_initializers", "_haar"),
    ("_program",),
    ("_stages",),
    ("_reading",),
    ("_moments",),
    ("_evaluate",),
    ("_lsuv", "_schemes", "_rbm", "_lora"),
    ("_measuring",),
    ("_advice",),
    ("_diagnose", "_study"),
    ("_flax", "_plots"),
    ("haar", "linen", "lora", "nnx", "plot", "schemes", "__main__", "__init__"),
)
DOORS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
"""Rooms of which those outside use what the `__init__` exports, and files without an underscore; nothing else."""


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor(module):
    return next((i for i, rooms in enumerate(FLOORS) if room(module) in rooms), 0)


def imports(module):
    """The modules of the package that a module imports, anywhere in its file, including those for types only."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part != "__init__"]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("jaxinit"))
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(x for x in (base, node.module) if x)
            for alias in node.names if base.startswith("jaxinit") else ():
                found = f"{base}.{alias.name}"
                yield found if known(found) in MODULES else base


def known(module):
    return module if module in MODULES else f"{module}.__init__"


GRAPH = {module: {known(x) for x in imports(module)} - {module} for module in MODULES}


def cycles(graph):
    """Sets of modules each of which needs all others of its set (Tarjan's strongly connected components)."""
    index, low, stack, found = {}, {}, [], []

    def visit(v):
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in sorted(graph.get(v, ())):
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            component = [stack.pop()]
            while component[-1] != v:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for v in sorted(graph):
        if v not in index:
            visit(v)
    return found


def through_doors(graph):
    """The graph in which a room's files do not need its `__init__`, which gathers them and has no code of its own."""
    return {v: {w for w in ws if not w.endswith(".__init__") or room(w) != room(v)} for v, ws in graph.items()}


def test_no_two_files_need_each_other():
    assert cycles(through_doors(GRAPH)) == []
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_imports_point_downwards():
    above = [(module, x) for module in MODULES for x in GRAPH[module] if floor(x) > floor(module)]
    assert not [pair for pair in above if pair[1] != "jaxinit.__init__"]


def test_rooms_are_entered_by_their_doors():
    entered = [(module, x) for module in MODULES for x in GRAPH[module] if room(x) in DOORS and room(x) != room(module)]
    assert len(entered) > 50
    assert not [pair for pair in entered if pair[1].split(".")[-1] != "__init__" and pair[1].split(".")[-1][0] == "_"]


def test_the_map_names_what_there_is():
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    files = [path for line in text.splitlines() for path in in_rooms(re.findall(r"`([\w/.]+)`", line))]
    assert len(files) > 50
    assert not [path for path in files if not (PACKAGE / path).exists() and not (PACKAGE.parent / path).exists()]
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert not [name for name in rooms if f"**`{name}`**" not in text]


def in_rooms(names):
    """Paths of the files among some names; one without a folder is in the folder of the one before it."""
    folder = ""
    for name in names:
        if not re.search(r"\.pyi?$|/$", name):
            continue
        if "/" not in name and not (PACKAGE / name).exists():
            name = f"{folder}/{name}"
        folder = name.rpartition("/")[0]
        yield name


def test_every_room_has_tests_that_bear_its_name():
    """`test_<room>.py` and `test_<room>_<topic>.py`; of the package as a whole, `test_package_<topic>.py`."""
    rooms = {name.strip("_") for name in DOORS} | {"package"}
    named = {path.stem.split("_")[1] for path in Path(__file__).parent.glob("test_*.py")}
    assert named == rooms

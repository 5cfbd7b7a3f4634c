"""`import jaxinit` is light, floors import downwards only, and JAX is used only through its public API."""

import ast
import subprocess
import sys
from pathlib import Path

import jaxinit

PACKAGE = Path(jaxinit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def _loaded_by(program):
    """Names of the modules that the program loads beyond JAX's own."""
    watched = f"import jax, sys; before = set(sys.modules); {program}; print(*(set(sys.modules) - before))"
    return subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, check=True).stdout.split()


def test_import_loads_nothing_that_is_not_used():
    assert not any(name.startswith("jaxinit._") for name in _loaded_by("import jaxinit"))
    initializer = _loaded_by("import jaxinit; jaxinit.he_uniform()")
    assert "jaxinit._initializers" in initializer
    assert not {"jaxinit._reading", "jaxinit._study", "jaxinit._schemes"} & set(initializer)


def test_no_name_of_the_package_loads_a_framework():
    loaded = _loaded_by("import jaxinit; [getattr(jaxinit, name) for name in jaxinit.__all__]")
    assert "jaxinit._study" in loaded
    assert not {"flax", "optax", "matplotlib", "scipy.optimize"} & set(loaded)


def test_schemes_and_initializers_are_known_by_name_whatever_else_is_loaded():
    jaxinit_alone = (
        "import jax, jaxinit; w = jax.numpy.ones((2, 2)); "
        "print(jaxinit.initialize(jax.random.key(0), w, lambda w, x: x @ w, w, 'auto').shape, "
        "jaxinit.from_config({'name': 'he_normal'}))"
    )
    run = subprocess.run([sys.executable, "-c", jaxinit_alone], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("(2, 2) he_normal(")


def test_the_first_use_may_be_on_a_mesh_with_explicit_axes():
    program = (
        "import jax, jaxinit\n"
        "mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Explicit,))\n"
        "w = jax.ShapeDtypeStruct((2, 2), 'float32')\n"
        "with jax.set_mesh(mesh): print(len(jaxinit.trace_layers(w, lambda w, x: x @ w, w)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "1\n"


def test_init_files_only_reexport():
    for path in [*FILES, PACKAGE / "__init__.pyi"]:
        if path.name.startswith("__init__") and path != PACKAGE / "__init__.py":
            body = ast.parse(path.read_text()).body
            assert all(isinstance(node, ast.ImportFrom) or ast.get_docstring(ast.Module([node], [])) for node in body)


def test_flax_is_imported_by_the_glue_alone():
    glue = {PACKAGE / "_initializers" / "_partitioned_box.py"}
    glue |= {*(PACKAGE / "_flax").glob("*.py"), PACKAGE / "_plots" / "_style.py"}
    glue |= {PACKAGE / "_study" / "demo.py"}
    for path in set(FILES) - glue:
        assert not any(name.split(".")[0] in ("flax", "optax", "matplotlib") for name in _imports(path)), path


def test_one_file_alone_touches_the_extension_api_of_jax():
    extension = PACKAGE / "_program" / "_primitives.py"
    assert any(name.startswith("jax.extend") for name in _imports(extension))
    for path in set(FILES) - {extension}:
        for name in _imports(path):
            assert not name.startswith(("jax._src", "jax.core", "jax.extend", "jax.interpreters")), (path, name)
        assert "jax.core." not in path.read_text(), path


def test_arithmetic_imports_nothing_above_it():
    for path in PACKAGE.glob("_*.py"):
        if path.name != "__init__.py":
            assert not any(name.startswith("jaxinit._initializers") for name in _imports(path)), path


def test_the_version_is_written_once():
    assert jaxinit.__version__
    others = [path for path in FILES if jaxinit.__version__ in path.read_text() and path.name != "_public.py"]
    assert others == []

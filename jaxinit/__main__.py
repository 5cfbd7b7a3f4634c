"""`python -m jaxinit`: where to begin, and `python -m jaxinit demo`, a small study."""

import argparse
import inspect
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

import jaxinit
from jaxinit._schemes import SCHEMES
from jaxinit._study.demo import DEPTH, demo

_BEGIN = """\
Begin with
  array by array    nn.Dense(64, kernel_init=jaxinit.he_normal())
  whole models      jaxinit.initialize(key, params, apply_fn, batch, "auto")
                    jaxinit.lsuv(params, apply_fn, batch)
  what is wrong?    jaxinit.diagnose(params, apply_fn, batch), jaxinit.recommend(params, apply_fn, batch)
  which is best?    jaxinit.study(["auto", jaxinit.lsuv], params, loss_fn, data, ...)
  see it at work    python -m jaxinit demo"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jaxinit", description="Weight initialization for JAX and Flax.")
    parser.add_argument("command", nargs="?", choices=["demo"], help="demo: a small study of four starts")
    command = parser.parse_args(arguments).command
    if command == "demo":
        _demo()
    else:
        _overview()


def _overview() -> None:
    """Version, devices, and a list of all initializers and schemes."""
    lines = [_versions()]
    for title, rows in (("Initializers: jaxinit.*", _initializers()), ("Schemes: jaxinit.schemes.*", _schemes())):
        listed = list(rows)
        width = max(len(name) for name, _ in listed)
        lines += ["", title, *(f"  {name:{width}}  {what}" for name, what in listed)]
    print("\n".join([*lines, "", _BEGIN]))


def _demo() -> None:
    from rich.console import Console

    console, began = Console(), time.perf_counter()
    console.print(
        f"Two spirals, classified by a tanh network of {DEPTH} layers without normalization.", highlight=False
    )
    result = demo()
    console.print(result)
    console.print(
        f"{len(result.starts) * len(result.seeds)} networks trained in {time.perf_counter() - began:.0f} s. "
        "Your own model, data and optimizer: help(jaxinit.study)",
        highlight=False,
    )


def _versions() -> str:
    devices = jax.devices()
    return f"jaxinit {jaxinit.__version__}, JAX {jax.__version__}, devices: {len(devices)} × {devices[0].device_kind}"


def _initializers() -> Iterator[tuple[str, str]]:
    """Names of initializers, aliases of one initializer together, and their first lines."""
    names: dict[Any, list[str]] = {}
    for name in dir(jaxinit):
        value = getattr(jaxinit, name)
        kind = value if isinstance(value, type) else type(value)
        if issubclass(kind, jaxinit.Initializer) and kind is not jaxinit.Initializer:
            names.setdefault(kind, []).append(name)
    for kind, same in names.items():
        yield ", ".join(same), _first_line(kind)


def _schemes() -> Iterator[tuple[str, str]]:
    """Names of schemes and their first lines."""
    for name, kind in sorted(SCHEMES.items()):
        yield name, _first_line(kind)


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n")[0]


if __name__ == "__main__":
    main()

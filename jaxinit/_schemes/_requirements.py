"""What schemes require of a model; each check raises `MisfitError` with the layer that fails it."""

from typing import Any

from jaxinit._reading import Layer
from jaxinit._schemes._roles import Model


class MisfitError(ValueError):
    """A scheme whose assumptions the model does not meet."""


def check_branches(scheme: Any, model: Model) -> None:
    """Checks that the model has residual branches."""
    if not model.branches:
        raise MisfitError(
            f"{scheme!r} is for residual networks, but no layer of this model is in the branch of a skip connection "
            f"x + f(x); its layers are {_paths(model)}"
        )


def check_branch_lengths(scheme: Any, model: Model) -> None:
    """Checks that every residual branch has at least two layers."""
    check_branches(scheme, model)
    for layer, _ in model.layers:
        if layer.branch_length == 1:
            raise MisfitError(
                f"{scheme!r} needs branches of at least two layers: the last one is zero, and the others are scaled by "
                f"L^(-1/(2m-2)), but {layer.path} is the only layer of its branch"
            )


def check_multipliers(scheme: Any, model: Model) -> None:
    """Checks that every residual branch is multiplied by a parameter of one number."""
    check_branches(scheme, model)
    for skip in model.traced.skips:
        if skip.multiplier is None:
            raise MisfitError(
                f"{scheme!r} needs x + α f(x) with a parameter α of one number in every branch, but no such parameter "
                f"multiplies the branch of {_names(model, skip)}; see jaxinit.linen.ScaledResidual and jaxinit.nnx"
            )


def check_shortcuts(scheme: Any, model: Model) -> None:
    """Checks that in every skip connection a parameter multiplies what the branch is added to."""
    check_branches(scheme, model)
    for skip in model.traced.skips:
        if skip.shortcut is None:
            raise MisfitError(
                f"{scheme!r} needs ω ⊙ x + f(x) with a parameter ω in every skip connection, but none multiplies the x "
                f"that the branch of {_names(model, skip)} is added to"
            )


def check_attention(scheme: Any, model: Model) -> None:
    """Checks that the model has attention."""
    if not model.traced.structure.attentions:
        raise MisfitError(
            f"{scheme!r} is for transformers, but no layer of this model feeds softmax(Q Kᵀ) V; its layers are "
            f"{_paths(model)}"
        )


def check_cells(scheme: Any, model: Model) -> None:
    """Checks that the model has recurrent cells."""
    if not model.traced.structure.cells:
        raise MisfitError(
            f"{scheme!r} is for recurrent networks, but no loop of this model carries a state into a layer; its layers "
            f"are {_paths(model)}"
        )


def check_plain_cells(scheme: Any, model: Model) -> None:
    """Checks that the model has recurrent cells with square kernels of the state and without gates."""
    check_cells(scheme, model)
    for matrix in model.all_matrices:
        if matrix.meets_state and matrix.layer.fan_in != matrix.layer.fan_out:
            raise MisfitError(
                f"{scheme!r} makes the kernel of the state the identity, so it must be square and without gates, but "
                f"{matrix.layer.name} maps {matrix.layer.fan_in} to {matrix.layer.fan_out}"
            )
    for i, cell in enumerate(model.traced.structure.cells):
        if cell.forget or cell.input:
            names = [matrix.layer.name for matrix in model.all_matrices if matrix.cell == i]
            raise MisfitError(
                f"{scheme!r} is for plain recurrent cells, but the cell of {names} has gates; see schemes.recurrent"
            )


def check_rectified_chain(scheme: Any, model: Model) -> None:
    """Checks that the model is a plain chain of layers with ReLU between them, and nothing after the last."""
    *hidden, (last, _) = model.layers
    for layer, _ in hidden:
        name = rectifier(layer, model)
        if name not in ("relu", "crelu") or layer.skip is not None or layer.uses > 1 or layer.kind == "embed":
            where = " in a residual branch" if layer.skip is not None else ""
            raise MisfitError(
                f"{scheme!r} is for plain chains of layers with ReLU or concatenated ReLU between them, but "
                f"{layer.path}, a layer of kind {layer.kind!r}{where}, is used {layer.uses} times and followed by "
                f"{name or 'no activation'}"
            )
    if rectifier(last, model) is not None:
        raise MisfitError(
            f"{scheme!r} needs a last layer without an activation, but {rectifier(last, model)} follows {last.path}"
        )
    for layer in (model.layers[0][0], last):
        if layer.stacked > 1:
            raise MisfitError(
                f"{scheme!r} needs the first and the last layer of the model outside of a scan, since they differ from "
                f"the hidden ones, but {layer.path} holds {layer.stacked} layers"
            )


def rectifier(layer: Layer, model: Model) -> str | None:
    """The name of the activation that follows; "crelu" for a concatenated ReLU."""
    if layer.activation is not None:
        return layer.activation.name
    return "crelu" if model.has_concatenated_relu(layer) else None


def _paths(model: Model) -> list[str]:
    return [layer.path for layer, _ in model.layers]


def _names(model: Model, skip: Any) -> list[str]:
    return [layer.name for layer, weight in model.layers if set(weight.uses) & set(skip.layers)]

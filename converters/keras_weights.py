"""Gives the layers of a Network their weights, from any of Keras' ways to store them.

Legacy HDF5 (`weights.h5`, full models as `.h5`): a group per layer with a list of names;
a model in a model has one group for all of its weights, trainable ones first.
Version 3 (`model.weights.h5`): a tree of the objects; a layer goes by its class' name and
a count, its weights by their number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import h5py
import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.hdf5 import Hdf5
from converters.keras_layers import kind_of
from converters.keras_layers.activations import INSIDE, weights_inside
from converters.network import Layer, Network

# Weights that training does not change by gradients; a model in a model stores them last.
NOT_TRAINED = frozenset({"moving_mean", "moving_variance", "mean", "variance", "count"})

MISMATCH = "the weights and the architecture do not belong together"


def roles_of(layer: Layer) -> tuple[str, ...]:
    """Return the weights that a layer (not a nested model) has, in Keras' order."""
    return (*kind_of(layer).roles(layer.config), *weights_inside(layer.config))


def check_supported(network: Network) -> None:
    """Raise the ConversionError of the first layer that cannot be converted."""
    for layer in network.layers:
        if layer.network is not None:
            try:
                check_supported(layer.network)
            except ConversionError as error:
                raise error.at(layer.place) from None
        else:
            kind_of(layer)


# --- legacy HDF5 -----------------------------------------------------------------------


def assign_legacy(network: Network, file: Hdf5, root: h5py.Group) -> None:
    """Assign weights from the legacy layout; `root` has the attribute layer_names.

    In order, as Keras' load_weights does it, whatever the layers are called: a name that the
    file has too may belong to another layer there.
    """
    stored: dict[str, list[str]] = {}
    for name in file.names(root, "layer_names") or []:
        group = file.group(root, name)
        names = file.names(group, "weight_names") if group is not None else None
        if names:
            stored[name] = names
    layers = [layer for layer in network.layers if _slots(layer)]
    if len(layers) != len(stored):
        raise ConversionError(
            f"the file holds weights of {len(stored)} layers but the architecture has "
            f"{len(layers)} layers with weights; {MISMATCH}"
        )
    for layer, name in zip(layers, stored, strict=True):
        try:
            group = file.group(root, name)
            arrays = [file.array(group, weight) for weight in stored[name]]
            _fill(layer, stored[name], arrays)
        except ConversionError as error:
            raise error.at(layer.place) from None


Slot = tuple[Layer, str]


def _slots(layer: Layer) -> list[Slot]:
    """(layer, role) of each weight of a layer or nested model, layer by layer."""
    if layer.network is None:
        return [(layer, role) for role in roles_of(layer)]
    return [slot for inner in layer.network.layers for slot in _slots(inner)]


def _trainable_first(slots: list[Slot]) -> list[Slot]:
    def is_trained(slot: Slot) -> bool:
        return slot[1] not in NOT_TRAINED and slot[0].config.get("trainable", True) is not False

    return [s for s in slots if is_trained(s)] + [s for s in slots if not is_trained(s)]


def _fill(layer: Layer, names: Sequence[str], arrays: Sequence[NDArray[np.generic]]) -> None:
    """Distribute the arrays of one group over a layer, or over the layers of a model in it.

    The order inside a nested model changed between versions and depends on which layers
    were frozen; the roles in the weights' names tell which order it is.
    """
    slots = _slots(layer)
    orders = [_trainable_first(slots), slots]
    if len(names) != len(slots):
        raise ConversionError(
            f"the file holds {len(names)} weights for it, but its settings ask for "
            f"{len(slots)}; {MISMATCH}"
        )
    roles = [_role_in(name) for name in names]
    fitting = [o for o in orders if _agrees(roles, [role for _, role in o])]
    for (owner, role), array in zip((fitting or orders)[0], arrays, strict=True):
        owner.weights[role] = array


def _role_in(name: str) -> str:
    """'block/conv2d/kernel:0' -> 'kernel'."""
    return re.sub(r"(:\d+)?$", "", name.rsplit("/", 1)[-1])


def _agrees(found: Sequence[str], expected: Sequence[str]) -> bool:
    return all(f == e or f not in expected for f, e in zip(found, expected, strict=True))


# --- version 3 -------------------------------------------------------------------------


def assign_v3(network: Network, file: Hdf5, root: h5py.Group) -> None:
    """Assign weights from the version 3 layout; `root` holds the tree of the whole model."""
    # tf.keras 2.12 and 2.13 named the list of layers after an attribute of their own.
    group = file.group(root, "layers") or file.group(root, "_layer_checkpoint_dependencies")
    if group is None:
        if any(_slots(layer) for layer in network.layers):
            raise ConversionError("its weights have no layers; save the model anew")
        return
    names = _v3_names(network.layers)
    if any(name not in group for layer, name in names if _slots(layer)):
        names = _v3_names(network.layers, twice=True)
    for layer, name in names:
        found = file.group(group, name)
        try:
            _fill_v3(layer, file, found)
        except ConversionError as error:
            raise error.at(layer.place) from None


def _fill_v3(layer: Layer, file: Hdf5, group: h5py.Group | None) -> None:
    if layer.network is not None:
        if group is not None:
            assign_v3(layer.network, file, group)
        elif _slots(layer):
            raise ConversionError("its weights are missing from the file")
        return
    roles = roles_of(layer)
    if not roles:
        return
    own = [role for role in roles if not role.startswith(INSIDE)]
    _fill_vars(layer, own, file, group)
    if len(own) < len(roles):
        inside = file.group(group, INSIDE.strip("/")) if group is not None else None
        _fill_vars(layer, roles[len(own) :], file, inside)


def _fill_vars(layer: Layer, roles: Sequence[str], file: Hdf5, group: h5py.Group | None) -> None:
    held = file.group(group, "vars") if group is not None else None
    found = 0 if held is None else len(held)
    if found != len(roles):
        raise ConversionError(
            f"the file holds {found} weights for it, but its settings ask for {len(roles)}; "
            f"{MISMATCH}"
        )
    for i, role in enumerate(roles):
        assert held is not None  # there are roles, so there are as many weights
        layer.weights[role] = file.array(held, str(i))


def _v3_names(layers: Sequence[Layer], twice: bool = False) -> list[tuple[Layer, str]]:
    """Each layer with its name in the file: its class in snake case, counted.

    twice: as tf.keras 2.12 and 2.13 count: their list has every layer with weights two times.
    """
    counts: dict[str, int] = {}
    names = []
    for layer in layers:
        name = snake_case(layer.class_name)
        count = counts.get(name, 0)
        counts[name] = count + (2 if twice and _slots(layer) else 1)
        names.append((layer, f"{name}_{count}" if count else name))
    return names


def snake_case(name: str) -> str:
    """Return a class' name by Keras' own rule: 'SeparableConv2D' -> 'separable_conv2d'."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


# --- a live model ----------------------------------------------------------------------


def assign_live(network: Network, layer_named: Callable[[str], object]) -> None:
    """Assign weights from a Keras model in memory; `layer_named` gives its layers."""
    for layer in network.layers:
        live = layer_named(layer.name) if _slots(layer) else None
        if live is None:
            continue
        try:
            if layer.network is not None:
                assign_live(layer.network, live.get_layer)  # type: ignore[attr-defined]
            else:
                arrays = [np.asarray(array) for array in live.get_weights()]  # type: ignore[attr-defined]
                _fill(layer, [""] * len(arrays), arrays)
        except ConversionError as error:
            raise error.at(layer.place) from None

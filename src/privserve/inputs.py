"""What a query gives for each input of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from privserve.errors import InputError

Inputs = ArrayLike | Mapping[str, ArrayLike] | Sequence[ArrayLike]


def by_name(wanted: Mapping[str, Sequence[int | None]], x: Inputs) -> dict[str, Any]:
    """Return what is given for each input of a model, in the model's order.

    wanted: the inputs' shapes, without the batch, by name. x: one array where there is one
    input; else a list in that order or a dict. Raises InputError saying what the model takes.
    """
    given: Any = x
    if isinstance(given, Mapping):
        if set(given) != set(wanted):
            names = sorted(map(str, given))
            raise InputError(f"the model takes the inputs {_listed(wanted)}, not {names}")
        return {name: given[name] for name in wanted}
    is_list = isinstance(given, list | tuple)
    if len(wanted) == 1:
        ((name, shape),) = wanted.items()
        # As Keras does, take [x] for x; one rank too many cannot be a batch itself.
        if is_list and len(given) == 1 and getattr(given[0], "ndim", 0) == len(shape) + 1:
            given = given[0]
        return {name: given}
    if not is_list or len(given) != len(wanted):
        found = f"{len(given)} arrays" if is_list else "one array"
        raise InputError(
            f"the model takes {len(wanted)} inputs: {_listed(wanted)}; give a list in this order "
            f"or a dict by name, not {found}"
        )
    return dict(zip(wanted, given, strict=True))


def _listed(wanted: Mapping[str, Sequence[int | None]]) -> str:
    return ", ".join(f"'{name}' {batched(shape)}" for name, shape in wanted.items())


def batched(shape: Sequence[int | None]) -> str:
    """Return (3, 4) as "(B, 3, 4)"."""
    return f"({', '.join(['B', *map(str, shape)])})"

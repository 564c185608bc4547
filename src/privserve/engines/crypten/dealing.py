"""What compute parties ask CrypTen's dealer for, as data that is checked before it is used.

A party's share of a tuple is the next words of the stream that it has in common with the dealer,
and party 0 gets from the dealer what makes the sum right: a function of the words of all parties.
So all must be at the same tuple. A dealer that took party 0's word for it could be asked for
[W, 0] x [0, 1], which is zero, while the others take a Beaver triple: its answer is their next W
words, and those mask all that they are about to open. Hence every compute party says what it is
at, and the dealer answers where all say the same; one honest party among them is enough for its
words to be used for one thing, the one that it means. Requests hold shapes, which are public.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, TypeGuard

import torch

from privserve.errors import ClusterError

OPERANDS = {"additive": 2, "square": 1, "binary": 2, "wraps": 1, "B2A": 1}
"""CrypTen's own list of what its dealer does, and of how many tensors each tuple is."""
BILINEAR_OPS = frozenset({"mul", "matmul", "conv1d", "conv2d"})
"""What an additive triple may be of."""
OPTIONS = frozenset({"stride", "padding", "dilation", "groups"})
"""Of a convolution."""
REQUEST_BYTES = 4096
MAX_ELEMENTS = 1 << 28
"""Of a tensor that is asked for or opened: 2 GB."""
MAX_DIMENSIONS = 8
MAX_OPTION = 1 << 16
KEYS = {"function", "args", "kwargs"}


@dataclass(frozen=True)
class Request:
    """One tuple that all compute parties are at. Raises ClusterError where it cannot be dealt."""

    function: str
    """Of `OPERANDS`."""
    sizes: tuple[tuple[int, ...], ...]
    """The shapes of what is drawn from the streams: a and b, or r."""
    op: str | None = None
    """An additive triple's: the product that c is of a and b."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """That op's: by name an int, or an int per axis."""

    def __post_init__(self) -> None:
        if len(self.sizes) != OPERANDS.get(self.function):
            raise ClusterError("the dealer does not offer this function of this many tensors")
        ops = BILINEAR_OPS if self.function == "additive" else {None}
        if self.op not in ops or (self.options and not str(self.op).startswith("conv")):
            raise ClusterError("the dealer does not offer this function with these settings")
        for name, value in self.options.items():
            values = value if isinstance(value, list | tuple) else [value]
            least = 0 if name == "padding" else 1
            if (
                name not in OPTIONS
                or not 1 <= len(values) <= 2
                or not all(_is_whole(v, least, MAX_OPTION) for v in values)
            ):
                raise ClusterError(f"the dealer does not take this setting of a {self.op}")
        for size in self.sizes:
            _check_size(size)
        _check_size(self.shape)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of what party 0 gets, without computing it."""
        if self.op is None and len(self.sizes) == 1:
            return self.sizes[0]
        try:
            left, right = (torch.empty(s, dtype=torch.float32, device="meta") for s in self.sizes)
            return tuple(getattr(torch, self.op or "mul")(left, right, **self.options).shape)
        except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError):
            raise ClusterError(f"the dealer is asked for {self}, which do not fit") from None

    @property
    def arguments(self) -> list[Any]:
        """As the methods of CrypTen's TTPServer take them."""
        return [*self.sizes] if self.op is None else [*self.sizes, self.op]

    def __str__(self) -> str:
        shapes = " and ".join(str(list(size)) for size in self.sizes)
        return f"{self.function}{f' ({self.op})' if self.op else ''} of {shapes}"


def format_request(
    function: str,
    sizes: Sequence[Sequence[int]],
    op: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> bytes:
    """Return what is sent for a `Request` of these fields; the same bytes at all parties."""
    arguments = [*sizes] if op is None else [*sizes, op]
    fields = {"function": function, "args": arguments, "kwargs": options or {}}
    return json.dumps(fields, sort_keys=True).encode()


@lru_cache(1024)  # a query asks for what the one before asked for
def read_request(frame: bytes) -> Request:
    """Return what `format_request` made; raises ClusterError for what cannot be dealt."""
    try:
        fields = json.loads(frame)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or set(fields) != KEYS:
        raise ClusterError("what the dealer was sent is no request")
    function, arguments, options = (fields[key] for key in ("function", "args", "kwargs"))
    if not (
        isinstance(function, str) and isinstance(arguments, list) and isinstance(options, dict)
    ):
        raise ClusterError("what the dealer was sent is no request")
    op = arguments.pop() if arguments and isinstance(arguments[-1], str) else None
    if not all(isinstance(size, list) for size in arguments):
        raise ClusterError("what the dealer was sent is no request")
    return Request(function, tuple(tuple(size) for size in arguments), op, options)


def agreed(frames: Sequence[bytes], names: Sequence[str]) -> Request:
    """Return the one request that every compute party sent.

    frames, names: of the compute parties, by rank. Raises ClusterError saying who asks for what
    where they differ.
    """
    if all(frame == frames[0] for frame in frames):
        return read_request(frames[0])
    asked: dict[bytes, list[str]] = {}
    for frame, name in zip(frames, names, strict=True):
        asked.setdefault(frame, []).append(name)
    differing = "; ".join(f"{' and '.join(who)}: {_told(frame)}" for frame, who in asked.items())
    raise ClusterError(
        f"the compute parties ask the dealer for different things ({differing}). Nothing is dealt, "
        "since it would unmask what one of them opens: one runs other code than it says, or is not "
        "honest. Share the model again once you know which"
    )


def _told(frame: bytes) -> str:
    """Say what a frame asks for, in words of ours."""
    try:
        return str(read_request(frame))
    except ClusterError:
        return "no request that it knows"


def _check_size(size: Sequence[object]) -> None:
    """Raise ClusterError unless this is the shape of a tensor that can be dealt."""
    dimensions = [d for d in size if _is_whole(d, 1, MAX_ELEMENTS)]
    if (
        len(size) > MAX_DIMENSIONS
        or len(dimensions) != len(size)
        or math.prod(dimensions) > MAX_ELEMENTS
    ):
        raise ClusterError(
            f"a tensor that the dealer is asked for has 1 to {MAX_ELEMENTS} elements along at most "
            f"{MAX_DIMENSIONS} axes; ask fewer rows at a time"
        )


def _is_whole(value: object, low: int, high: int) -> TypeGuard[int]:
    return type(value) is int and low <= value <= high

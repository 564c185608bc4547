"""The dealer: makes packs for the compute parties and learns nothing.

It sends each party two keys when a session begins. From then on parties 1..n-1 draw their
parts of every pack from their own streams, and party 0 draws its masks and is sent the
rest. All that ever comes back is how many packs party 0 has room for.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from privserve.engines.ottt import guard, linear, lookup, product, tuples
from privserve.engines.ottt.comparison import plan_comparison
from privserve.engines.ottt.layout import PIECE_BYTES, Piece, lay_out, tuple_words
from privserve.errors import ClusterError, PeerLost
from privserve.fixedpoint import RingArray
from privserve.geometry import Geometry
from privserve.mesh import Mesh
from privserve.prg import KEY_BYTES, Prg, fresh_key
from privserve.program import Op, Program
from privserve.splines import quadratics

LANE = "deal"
CREDIT = struct.Struct("<q")
"""Party 0 to the dealer: room for so many further packs; 0 ends the session."""


class PackMaker:
    """Makes packs, piece by piece, from the streams of all parties and the dealer's own.

    keys: one pack key per compute party; masks: per linear op index, the B of its weight.
    """

    def __init__(
        self,
        program: Program,
        keys: list[bytes],
        masks: Mapping[int, RingArray],
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.program = program
        self.layout = lay_out(program, piece_bytes)
        self._streams = [Prg(key) for key in keys]
        self._own = Prg()
        self._linear = {
            index: (geometry.reading(), geometry.arrange(masks[index]), geometry)
            for index, op in enumerate(program.ops)
            if op.kind == "linear"
            for geometry in [Geometry.from_json(op.attributes["geometry"])]
        }
        self._specs = {
            index: plan_comparison(op.attributes["comparison_bits"]).spec()
            for index, op in enumerate(program.ops)
            if op.kind == "relu"
        }
        self._quadratics = {
            index: quadratics(op.attributes)
            for index, op in enumerate(program.ops)
            if op.kind == "lookup"
        }
        # Room for the largest piece of each kind, of as many packs as were ever made at a time.
        self._room = 0
        self._buffers: list[RingArray] = []

    def make(self, count: int) -> Iterator[RingArray]:
        """The next `count` packs by piece: int64[count, corrected words], party 0's fields.

        The arrays are reused from piece to piece.
        """
        if count > self._room:
            others = len(self._streams) - 1
            pieces, ops = self.layout.pieces, self.program.ops
            sizes = (
                others * max(piece.words for piece in pieces),
                max(piece.mask_words for piece in pieces),
                max(piece.corrected_words for piece in pieces),
                max((self._fresh_words(op) for op in ops), default=0),
            )
            self._buffers = [np.zeros(count * size, np.int64) for size in sizes]
            self._room = count
        for piece in self.layout.pieces:
            yield self._make_piece(piece, count)

    def _make_piece(self, piece: Piece, count: int) -> RingArray:
        buffers, parties = self._buffers, len(self._streams)
        others = _shaped(buffers[0], (parties - 1, count, piece.words))
        first = _shaped(buffers[1], (count, piece.mask_words))
        out = _shaped(buffers[2], (count, piece.corrected_words))
        self._streams[0].fill(first.data)
        for stream, share in zip(self._streams[1:], others, strict=True):
            stream.fill(share.data)
        for index in range(piece.first, piece.last):
            op = self.program.ops[index]
            if index not in self.layout.fields:
                continue
            value = self.program.values[op.output]
            # Where the op's masks and fields lie in the piece, and its corrections in `out`.
            mask = self.layout.masks.get(index, piece.start) - piece.start
            base = self.layout.fields[index] - piece.start
            target = base - piece.mask_words
            if zeros := guard.flag_words(op):
                end = tuple_words(self.program, op) - zeros
                guard.deal_zeros(others, base + end, target + end, out)
            if op.kind == "linear":
                reading, weight, geometry = self._linear[index]
                inputs = self.program.values[op.inputs[0]].size
                linear.deal(
                    first,
                    mask,
                    others,
                    inputs,
                    base,
                    target,
                    value.size,
                    *reading,
                    weight,
                    geometry.outputs // geometry.groups,
                    inputs // geometry.groups,
                    out,
                )
            elif op.kind == "multiply":
                product.deal_product(
                    first,
                    others,
                    mask,
                    base,
                    target,
                    value.size,
                    self.program.values[op.inputs[1]].size,
                    op.attributes["inner"],
                    out,
                )
            elif op.kind == "lookup":
                lookup.deal_lookup(
                    first,
                    others,
                    mask,
                    base,
                    target,
                    value.size,
                    op.attributes["comparison_bits"],
                    op.attributes["segment_bits"],
                    self._quadratics[index],
                    out,
                )
            elif op.kind in ("relu", "truncate"):
                k = op.attributes["comparison_bits"]
                own = self._fresh(op, buffers[3], count)
                if op.kind == "relu":
                    spec = self._specs[index]
                    chunks = plan_comparison(k).chunks
                    tuples.deal_relu(
                        own, others, base, target, value.size, value.bits, k, spec, chunks, out
                    )
                else:
                    tuples.deal_truncate(
                        own[0], others, base, target, value.size, value.bits, k, out
                    )
        return out

    def _fresh_words(self, op: Op) -> int:
        """How much randomness of its own the dealer needs for an op, in words per query."""
        value = self.program.values[op.output]
        return {"relu": 2, "truncate": 1}.get(op.kind, 0) * value.size

    def _fresh(self, op: Op, buffer: RingArray, count: int) -> RingArray:
        """The dealer's own next randomness for `op`: int64[1 or 2, count, elements]."""
        size = self.program.values[op.output].size
        own = _shaped(buffer, (self._fresh_words(op) // size, count, size))
        self._own.fill(own.data)
        return own


def _shaped(flat: RingArray, shape: tuple[int, ...]) -> RingArray:
    """The beginning of `flat` as an array of this shape."""
    return flat[: math.prod(shape)].reshape(shape)


def masks_of_weights(program: Program, prg: Prg) -> Iterator[tuple[int, RingArray]]:
    """(index of a linear op, the share of its B) in turn, from a party's set-up stream."""
    for index, op in enumerate(program.ops):
        if op.kind == "linear":
            yield index, prg.int64(Geometry.from_json(op.attributes["geometry"]).weight_shape)


def deal(
    description: Mapping[str, Any],
    meshes: Mapping[str, Mesh],
    *,
    stop: threading.Event | None = None,
    piece_bytes: int = PIECE_BYTES,
    **_: Any,
) -> None:
    """Serve one session's packs; returns when party 0 ends it, or leaves, or at `stop`."""
    program = Program.from_json(description)
    mesh = meshes[LANE]
    try:
        keys = []
        masks: dict[int, RingArray] = {}
        for party in range(mesh.n):
            setup_key, pack_key = fresh_key(), fresh_key()
            mesh.send(party, setup_key + pack_key)
            keys.append(pack_key)
            for index, share in masks_of_weights(program, Prg(setup_key)):
                if index in masks:
                    masks[index] += share
                else:
                    masks[index] = share
        maker = PackMaker(program, keys, masks, piece_bytes)
        del masks
        while stop is None or not stop.is_set():
            (room,) = CREDIT.unpack(mesh.recv(0))
            if room <= 0:
                return
            while room and (stop is None or not stop.is_set()):
                count = min(room, maker.layout.packs_per_message)
                for piece, corrections in zip(maker.layout.pieces, maker.make(count), strict=True):
                    for frame in piece.frames(count):
                        mesh.send(0, corrections[:, frame].data.cast("B"))
                room -= count
    except PeerLost:
        return


def split_keys(frame: bytes | memoryview) -> tuple[bytes, bytes]:
    """The set-up key and the pack key from the dealer's first frame."""
    if len(frame) != 2 * KEY_BYTES:
        raise ClusterError("the dealer runs another version of privserve; use one everywhere")
    return bytes(frame[:KEY_BYTES]), bytes(frame[KEY_BYTES:])

"""The dealer: makes packs for the compute parties and learns nothing.

It sends each party two keys when a session begins. From then on parties 1..n-1 draw their
parts of every pack from their own streams, and party 0 draws its masks and is sent the
rest. All that ever comes back is how many packs party 0 has room for, and whether it needs them
soon: what it does not is made in spare time (see `refill`).
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from privserve.engines.ottt.jit import compile_kernels
from privserve.engines.ottt.layout import PIECE_BYTES, PackPiece, lay_out
from privserve.engines.ottt.ops import TUPLE_OPS
from privserve.engines.ottt.ops.check import bind_zeros
from privserve.engines.ottt.ops.linear import masks_of_weights
from privserve.engines.ottt.ops.opening import DealerStep, Place
from privserve.engines.ottt.spare_time import step_back
from privserve.errors import BadFrame, PeerLost
from privserve.fixedpoint import RingArray
from privserve.mesh import Mesh
from privserve.prg import KEY_BYTES, Prg, fresh_key
from privserve.program import Program
from privserve.validation import read_program

LANE = "deal"
CREDIT = struct.Struct("<q?")
"""Party 0 to the dealer: room for this many further packs, and whether they are needed soon; none
ends the session."""
MAX_CREDIT = 1 << 40
"""No pool is as large: what is more is no number of packs."""


class PackMaker:
    """Makes packs, piece by piece, from the streams of all parties.

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
        self._steps = [list(self._bind(piece, masks)) for piece in self.layout.pieces]
        """By piece: what makes its corrections."""
        # Room for the largest piece of each kind, of as many packs as were ever made at a time.
        self._room = 0
        self._buffers: list[RingArray] = []

    def _bind(self, piece: PackPiece, masks: Mapping[int, RingArray]) -> Iterator[DealerStep]:
        """The steps that make the piece's corrections, op by op."""
        program, layout = self.program, self.layout
        for index in range(piece.first, piece.last):
            if index not in layout.fields:
                continue
            op = program.ops[index]
            kind = TUPLE_OPS[op.kind]
            fields = layout.fields[index] - piece.start
            place = Place(
                masks=layout.masks.get(index, piece.start) - piece.start,
                fields=fields,
                target=fields - piece.mask_words,
            )
            if kind.deal is not None:
                yield kind.deal(program, op, place, masks.get(index))
            if op.is_guarded:
                behind = kind.dealt(program, op)
                yield bind_zeros(fields=fields + behind, target=place.target + behind)

    def make(self, count: int) -> Iterator[RingArray]:
        """Yield the next `count` packs by piece: int64[count, corrected words], party 0's fields.

        The arrays are reused from piece to piece.
        """
        if count > self._room:
            others, pieces = len(self._streams) - 1, self.layout.pieces
            sizes = (
                others * max(piece.drawn_words for piece in pieces),
                max(piece.mask_words for piece in pieces),
                max(piece.corrected_words for piece in pieces),
            )
            self._buffers = [np.zeros(count * size, np.int64) for size in sizes]
            self._room = count
        for piece, steps in zip(self.layout.pieces, self._steps, strict=True):
            yield self._make_piece(piece, steps, count)

    def _make_piece(self, piece: PackPiece, steps: Sequence[DealerStep], count: int) -> RingArray:
        buffers, parties = self._buffers, len(self._streams)
        first = _shaped(buffers[1], (count, piece.mask_words))
        others = _shaped(buffers[0], (parties - 1, count, piece.drawn_words))
        out = _shaped(buffers[2], (count, piece.corrected_words))
        self._streams[0].fill(first.data)
        for stream, share in zip(self._streams[1:], others, strict=True):
            stream.fill(share.data)
        for step in steps:
            step(first, others, out)
        return out


def _shaped(flat: RingArray, shape: tuple[int, ...]) -> RingArray:
    """The beginning of `flat` as an array of this shape."""
    return flat[: math.prod(shape)].reshape(shape)


def deal(
    description: Mapping[str, Any],
    meshes: Mapping[str, Mesh],
    *,
    stop: threading.Event | None = None,
    piece_bytes: int = PIECE_BYTES,
    **_: Any,
) -> None:
    """Serve one session's packs; return when party 0 ends it, or leaves, or at `stop`."""
    compile_kernels()
    program = read_program(description)
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
        with ThreadPoolExecutor(1, "spare", initializer=step_back) as spare:
            while stop is None or not stop.is_set():
                count, is_urgent = _credit(mesh)
                if count == 0:
                    return
                if is_urgent:
                    _send_packs(maker, mesh, count, stop)
                else:
                    spare.submit(_send_packs, maker, mesh, count, stop).result()
    except BadFrame:
        raise
    except PeerLost:
        return


def _send_packs(maker: PackMaker, mesh: Mesh, count: int, stop: threading.Event | None) -> None:
    """Make the next `count` packs and send party 0 their corrections."""
    while count and (stop is None or not stop.is_set()):
        part = min(count, maker.layout.packs_per_message)
        for piece, corrections in zip(maker.layout.pieces, maker.make(part), strict=True):
            for frame in piece.frames(part):
                mesh.send(0, corrections[:, frame].data.cast("B"))
        count -= part


def _credit(mesh: Mesh) -> tuple[int, bool]:
    """For how many further packs party 0 has room, and whether queries wait for them."""
    frame = mesh.recv(0)
    count, is_urgent = CREDIT.unpack(frame) if len(frame) == CREDIT.size else (-1, False)
    if not 0 <= count <= MAX_CREDIT:
        raise mesh.bad_frame(0, "what is no number of packs")
    return count, is_urgent


def dealt_keys(mesh: Mesh) -> tuple[bytes, bytes]:
    """Return the set-up key and the pack key from the dealer's first frame."""
    frame = bytes(mesh.recv(mesh.n))
    if len(frame) != 2 * KEY_BYTES:
        raise mesh.bad_frame(mesh.n, "what are no keys")
    return frame[:KEY_BYTES], frame[KEY_BYTES:]

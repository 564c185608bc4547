"""The dealer: makes packs for the compute parties and learns nothing.

It sends each party two keys when a session begins. From then on parties 1..n-1 draw their
parts of every pack from their own streams, and party 0 draws its masks and is sent the
rest. All that ever comes back is how many packs party 0 has room for.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from privserve.engines import Mesh
from privserve.engines.ottt import linear, lookup, product, tuples
from privserve.engines.ottt.comparison import plan_comparison
from privserve.engines.ottt.layout import lay_out
from privserve.engines.ottt.linear import Geometry
from privserve.errors import PeerLost
from privserve.fixedpoint import RingArray
from privserve.prg import KEY_BYTES, Prg, fresh_key
from privserve.program import Program

LANE = "deal"
CREDIT = struct.Struct("<q")
"""Party 0 to the dealer: room for so many further packs; 0 ends the session."""


class PackMaker:
    """Makes packs from the streams of all parties and the dealer's own.

    keys: one pack key per compute party; masks: per linear op index, the B of its weight.
    """

    def __init__(self, program: Program, keys: list[bytes], masks: Mapping[int, RingArray]) -> None:
        self.program = program
        self.layout = lay_out(program)
        self._streams = [Prg(key) for key in keys]
        self._own = Prg()
        self._masks = masks
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
            index: lookup.quadratics(op.attributes)
            for index, op in enumerate(program.ops)
            if op.kind == "lookup"
        }
        self._buffers: dict[int, tuple[RingArray, RingArray, RingArray]] = {}
        self._randomness: dict[tuple[int, int], RingArray] = {}

    def make(self, count: int) -> RingArray:
        """The next `count` packs: int64[count, corrected words], party 0's fields.

        The array is reused by the next call of the same count.
        """
        layout = self.layout
        if count not in self._buffers:
            self._buffers[count] = (
                np.zeros((len(self._streams) - 1, count, layout.words), np.int64),
                np.zeros((count, layout.mask_words), np.int64),
                np.zeros((count, layout.corrected_words), np.int64),
            )
        others, first, out = self._buffers[count]
        self._streams[0].fill(first.data)
        for stream, share in zip(self._streams[1:], others, strict=True):
            stream.fill(share.data)
        for index, op in enumerate(self.program.ops):
            value = self.program.values[op.output]
            if op.kind == "linear":
                reading, weight, geometry = self._linear[index]
                inputs = self.program.values[op.inputs[0]].size
                linear.deal(
                    first,
                    layout.masks[index],
                    others,
                    inputs,
                    layout.fields[index],
                    layout.fields[index] - layout.mask_words,
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
                    layout.masks[index],
                    layout.fields[index],
                    layout.fields[index] - layout.mask_words,
                    value.size,
                    self.program.values[op.inputs[1]].size,
                    op.attributes["inner"],
                    out,
                )
            elif op.kind == "lookup":
                lookup.deal_lookup(
                    first,
                    others,
                    layout.masks[index],
                    layout.fields[index],
                    layout.fields[index] - layout.mask_words,
                    value.size,
                    op.attributes["comparison_bits"],
                    op.attributes["segment_bits"],
                    self._quadratics[index],
                    out,
                )
            elif op.kind in ("relu", "truncate"):
                k = op.attributes["comparison_bits"]
                base = layout.fields[index]
                target = base - layout.mask_words
                if op.kind == "relu":
                    own = self._fresh(index, (2, count, value.size))
                    spec = self._specs[index]
                    chunks = plan_comparison(k).chunks
                    tuples.deal_relu(
                        own, others, base, target, value.size, value.bits, k, spec, chunks, out
                    )
                else:
                    own = self._fresh(index, (1, count, value.size))
                    tuples.deal_truncate(
                        own[0], others, base, target, value.size, value.bits, k, out
                    )
        return out

    def _fresh(self, index: int, shape: tuple[int, int, int]) -> RingArray:
        """The dealer's own next randomness for op `index`, in a buffer that is reused."""
        key = (index, shape[1])
        if key not in self._randomness:
            self._randomness[key] = np.empty(shape, np.int64)
        self._own.fill(self._randomness[key].data)
        return self._randomness[key]


def mask_of_weights(program: Program, prg: Prg) -> dict[int, RingArray]:
    """The next share of every B from a party's set-up stream, by index of the linear op."""
    return {
        index: prg.int64(Geometry.from_json(op.attributes["geometry"]).weight_shape)
        for index, op in enumerate(program.ops)
        if op.kind == "linear"
    }


def deal(
    description: Mapping[str, Any],
    meshes: Mapping[str, Mesh],
    *,
    stop: threading.Event | None = None,
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
            for index, share in mask_of_weights(program, Prg(setup_key)).items():
                masks[index] = masks[index] + share if index in masks else share
        maker = PackMaker(program, keys, masks)
        while stop is None or not stop.is_set():
            (room,) = CREDIT.unpack(mesh.recv(0))
            if room <= 0:
                return
            while room and (stop is None or not stop.is_set()):
                count = min(room, maker.layout.packs_per_message)
                mesh.send(0, maker.make(count).data.cast("B"))
                room -= count
    except PeerLost:
        return


def split_keys(frame: bytes | memoryview) -> tuple[bytes, bytes]:
    """The set-up key and the pack key from the dealer's first frame."""
    return bytes(frame[:KEY_BYTES]), bytes(frame[KEY_BYTES:])

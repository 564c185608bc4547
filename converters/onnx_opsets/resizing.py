"""Images in other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from converters.onnx_nodes import Nodes, make, refusal
from converters.onnx_opsets.rules import Scope, rule


@rule("Upsample")
def upsample(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """What Resize was called up to opset 9."""
    scales = attributes.get("scales")
    if scales is None:
        given = s.constant(node, 1)
        scales = [] if given is None else given.tolist()
    return _resized(node, s, scales, attributes.get("mode", "nearest"))


@rule("Resize")
def resize(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 10 had the scales as its second input; 18 added settings that are rarely used."""
    if s.version == 10:
        scales = s.constant(node, 1)
        mode = attributes.get("mode", "nearest")
        return _resized(node, s, [] if scales is None else scales.tolist(), mode)
    if attributes.pop("antialias", 0):
        raise refusal(node, "antialiasing is not supported")
    if attributes.pop("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise refusal(node, "keep_aspect_ratio_policy is not supported; give both sizes")
    axes = attributes.pop("axes", None)
    scales, sizes = s.constant(node, 2), s.constant(node, 3)
    shape = s.shapes.get(node.input[0])
    if axes is not None:
        if shape is None:
            raise refusal(node, "the shape of what it reads cannot be inferred")
        factors = np.ones(len(shape), np.float32)
        for axis, i in zip(axes, range(len(axes)), strict=True):
            if sizes is not None and sizes.size:
                factors[axis] = float(sizes[i]) / shape[axis]
            elif scales is not None:
                factors[axis] = scales[i]
        scales, sizes = factors, None
    elif sizes is not None and sizes.size and shape is not None:
        # The batch is never resized, whatever its size was when the model was exported.
        scales = np.array([1.0, *(t / n for t, n in zip(sizes[1:], shape[1:], strict=True))])
        sizes = None
    names = (
        [node.input[0], "", s.add(np.asarray(scales, np.float32))] if sizes is None else node.input
    )
    return [make("Resize", names, node.output[0], node, **attributes)]


def _resized(node: onnx.NodeProto, s: Scope, scales: Sequence[float], mode: str) -> Nodes:
    names = [node.input[0], "", s.add(np.array(scales, np.float32))]
    settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    mode = "linear" if mode == "bilinear" else mode
    return [make("Resize", names, node.output[0], node, mode=mode, **settings)]

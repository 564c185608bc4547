#!/usr/bin/env python3
"""Converts a Keras model file to ONNX and prints what is in it: `privserve convert`.

python scripts/convert.py model.h5                 writes model.onnx beside it
python scripts/convert.py model.h5 --check xy.npz  and compares with Keras' own outputs
"""

from __future__ import annotations

import sys

from privserve.convert import main

if __name__ == "__main__":
    sys.exit(main())

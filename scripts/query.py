"""Query a served model, as `privserve query`: python scripts/query.py [digit.png ...] [--count 5].

python scripts/query.py inputs.npz      any model: one array per input, by its name
python scripts/query.py --model NAME    where several models are shared
"""

from __future__ import annotations

import sys

from privserve.query import main

if __name__ == "__main__":
    sys.exit(main())

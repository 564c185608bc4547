"""`python -m privserve` is the command `privserve`."""

from __future__ import annotations

import sys

from privserve.commands import main

if __name__ == "__main__":
    sys.exit(main())

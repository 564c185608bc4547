#!/usr/bin/env python3
"""Put the browser's page together: one file, `src/privserve/web/page.html`, of what is in `web/`.

One file has one SHA-256, by which whoever kept it can tell that it is the release's. Its policy
names the hashes of its only script and its only style, so that a browser runs nothing else in it.
`python scripts/web_page.py` writes it and prints its hash; with --check it only says whether what
is there is up to date.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "web"
SERVED = ROOT / "src" / "privserve" / "web"
PAGE = SERVED / "page.html"
MODULES = (
    SERVED / "privserve-client.js",
    SOURCES / "drawing.js",
    SOURCES / "words.js",
    SOURCES / "app.js",
)
"""In the order in which they import each other."""
IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) )", re.MULTILINE)
NAME = re.compile(r"^(?:async )?(?:function|const|let|class) (\w+)", re.MULTILINE)


def page() -> str:
    """Return the page; raises ValueError where its modules cannot be one script."""
    script = "\n" + "\n".join(_without_modules(path.read_text()) for path in MODULES)
    style = "\n" + (SOURCES / "style.css").read_text()
    twice = [name for name, times in Counter(NAME.findall(script)).items() if times > 1]
    if twice or re.search(r"^(?:import|export)\b", script, re.MULTILINE) or "</script" in script:
        raise ValueError(f"these modules do not go into one script; names in two: {twice}")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(script)}",
            f"style-src {_source(style)}",
            # Of a copy that asks whom its reader names. Served, a header narrows it to the parties.
            "connect-src 'self' https: http://localhost:* http://127.0.0.1:*",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    parts = {
        "policy": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        "style": f"<style>{style}</style>",
        "script": f'<script type="module">{script}</script>',
    }
    text = (SOURCES / "index.html").read_text()
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    return text


def _without_modules(text: str) -> str:
    return EXPORT.sub("", IMPORT.sub("", text))


def _source(text: str) -> str:
    """What a policy calls an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description="Make the page for browsers of web/.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where it is another one"
    )
    options = parser.parse_args(arguments)
    made = page().encode()
    if options.check:
        if PAGE.is_file() and PAGE.read_bytes() == made:
            return 0
        print(f"{PAGE} is not what web/ makes; run `python scripts/web_page.py`", file=sys.stderr)
        return 1
    PAGE.write_bytes(made)
    print(f"{hashlib.sha256(made).hexdigest()}  {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

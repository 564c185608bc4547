"""The options of the command line that let browsers ask: which there are, and which go together."""

from __future__ import annotations

import argparse

from privserve.errors import ConfigError

DEFAULT_PORT = 4080
MOST_PORT = 65000
"""Of the page; the parties' follow."""


def add_web(parser: argparse.ArgumentParser) -> None:
    """Add them to `privserve.launch`'s."""
    parser.add_argument(
        "--web",
        nargs="?",
        type=int,
        const=DEFAULT_PORT,
        metavar="PORT",
        help="serve a page at http://localhost:PORT (4080) where a digit is drawn, and let it ask "
        "the parties at the ports that follow; with --party: let pages of --web-origin ask this "
        "party at http://localhost:PORT",
    )
    parser.add_argument(
        "--web-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="with --web: of a page that may ask, besides the one that is served here, such as "
        "https://digits.example, or null for pages that are opened as files (may be repeated)",
    )


def check_web(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Have the parser refuse what does not go together."""
    from privserve.config import checked_origin  # loads more than who asks for help should wait for

    try:
        for origin in options.web_origin:
            checked_origin(origin)
    except ConfigError as error:
        parser.error(str(error))
    if options.party:
        if (options.web is None) != (not options.web_origin):
            parser.error("with --party, --web and --web-origin go together")
        return
    if options.web is None:
        if options.web_origin:
            parser.error("--web-origin goes with --web")
        return
    if options.config or options.init or options.join:
        parser.error(
            "--web serves a page for parties that are started here; for parties on hosts of their "
            "own see docs/browser.md"
        )
    if options.cells not in (None, 1):
        parser.error("--web goes with one cell; leave --cells away")
    if not 0 <= options.web <= MOST_PORT:
        parser.error(f"--web is a port from 1 to {MOST_PORT}, or 0 for any free one")

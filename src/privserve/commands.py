"""The command `privserve`: one name for the programs that `python -m privserve.NAME` runs.

Nothing is loaded but what is asked for: `privserve --help` has to answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMANDS = {
    "launch": ("privserve.launch", "launch the parties of a cluster, share a model and serve it"),
    "batch": ("privserve.batch", "ask for many rows of a file, with checkpoints"),
    "models": ("privserve.models", "list the models of a cluster, stop one"),
    "status": ("privserve.status", "show all parties and models of a cluster, once or --watch"),
    "clients": ("privserve.clients", "let clients in, limit them, turn them away"),
    "certify": ("privserve.certify", "sign, renew and revoke the parties' certificates"),
    "gateway": ("privserve.gateway", "answer plain inference requests by private queries"),
    "party": ("privserve.party", "run one party in the foreground"),
    "bench": ("privserve.bench", "measure engines and clusters on this machine"),
}
"""By name: the module that is the program, and what it does."""
FAILED = 2


def usage() -> str:
    """Say which commands there are."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {about}" for name, (_, about) in COMMANDS.items()]
    head = "usage: privserve COMMAND [options]\n\nServe a trained network so that nobody who runs "
    head += "the servers learns the input, the\nprediction or the weights.\n\ncommands:"
    return "\n".join([head, *lines, "", "`privserve COMMAND --help` says more of each."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named first, with the rest of the command line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in COMMANDS:
        # As `python -m` does: some programs have an end of their own there.
        import runpy

        sys.argv = [f"privserve {given[0]}", *given[1:]]
        runpy.run_module(COMMANDS[given[0]][0], run_name="__main__", alter_sys=True)
        return 0
    if given and given[0] in ("-h", "--help"):
        print(usage())
        return 0
    why = f"there is no command {given[0]!r}" if given else "no command was named"
    print(f"{usage()}\n\nerror: {why}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())

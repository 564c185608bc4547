"""The gateway: python -m privserve.gateway --config cluster.toml

Runs at the client's organisation, for applications that know nothing of shares: takes plain
tensors by the Open Inference Protocol (HTTP; gRPC with --grpc), asks the cluster with shares of
them, and answers with plain tensors. This process sees inputs and answers; no party does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from privserve.addresses import split_address
from privserve.errors import ConfigError, PrivserveError
from privserve.gateway import command_line
from privserve.gateway.serve import Settings, run

ORIGIN = re.compile(r"https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?")


def parse(arguments: Sequence[str] | None) -> Settings:
    """Return the options, checked; raises ConfigError, ends the program for those of no form."""
    options = command_line.parser().parse_args(arguments)
    for address in (options.http, options.grpc):
        if address is not None:
            split_address(address)
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key go together")
    if not 0 < options.timeout <= 3600:
        raise ConfigError("--timeout goes from 0 to 3600 seconds")
    for origin in options.cors:
        if not ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"--cors: {origin!r} is no origin; name one exactly as a browser sends it, such as "
                "https://app.example or http://localhost:3000"
            )
    return Settings(
        config=options.config,
        key=options.key,
        http=options.http,
        grpc=options.grpc,
        tls=None if options.tls_cert is None else (options.tls_cert, options.tls_key),
        origins=tuple(options.cors),
        timeout=options.timeout,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        run(parse(arguments))
    except PrivserveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        print(f"error: {named}{error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One party's process: its port, for clients and the other parties, and its sessions.

    python -m privserve.party --name bob --config cluster.toml

runs a party in the foreground until it is interrupted (`python -m privserve.launch
--party bob` is the same). `Cluster` starts its local parties this way too.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import socket
import sys
from dataclasses import replace

from privserve.addresses import bind, split_address
from privserve.config import ClusterConfig, Timeouts, checked_origin, read_config
from privserve.errors import ConfigError
from privserve.exit_codes import exit_code
from privserve.party import command_line
from privserve.party.json_log import log_as_json
from privserve.party.keep import Keep
from privserve.party.process import Doors, allow_descriptors, run_party
from privserve.party.query_log import log_queries
from privserve.party.quiet import SaidOften
from privserve.party.state_key import read_key

log = logging.getLogger("privserve")


def _sockets(name: str, descriptors: list[int], addresses: list[str]) -> list[socket.socket]:
    """What to listen on, where the command line says so."""
    bound = [bind(split_address(address), name, "--listen") for address in addresses]
    return [*(socket.socket(fileno=descriptor) for descriptor in descriptors), *bound]


def _metrics(name: str, where: str | None) -> socket.socket | None:
    """What metrics are scraped at; None where nobody asked for them."""
    if where is None:
        return None
    address = where if ":" in where else f"localhost:{where}"
    return bind(split_address(address), f"{name}'s metrics", "--metrics")


def _web(name: str, where: str | None, origins: list[str], role: str) -> socket.socket | None:
    """What browsers ask at, on this host alone; None where nobody asked for it."""
    if where is None and not origins:
        return None
    if where is None or not origins:
        raise ConfigError("--web and --web-origin go together: where, and pages of which origin")
    if role == "dealer":
        raise ConfigError(f"{name} is the dealer and takes no queries; leave --web away")
    sock = bind(split_address(where if ":" in where else f"localhost:{where}"), name, "--web")
    if not ipaddress.ip_address(sock.getsockname()[0]).is_loopback:
        sock.close()
        raise ConfigError(
            f"--web {where}: whoever listens on the way to two parties would have the query, since "
            "this port is not encrypted; name a port of localhost, and have a server with a "
            "certificate that browsers trust stand before it on this host (docs/browser.md)"
        )
    return sock


def _keep(config: ClusterConfig, options: argparse.Namespace) -> Keep | None:
    """Where the party keeps its shares, if there is a key for that; raises ConfigError."""
    key = read_key(options.state_key_file, options.state_key_command)
    if options.state_dir is None and key is not None:
        raise ConfigError("the key of a party's state goes with --state-dir")
    if options.state_dir is None or key is None:
        return None
    leads = config.rank(options.name) == 0
    # No party's name has a dot: what is one cell's is no other one's, also in one directory.
    name = f"{options.name}.{config.cell}" if config.cell else options.name
    return Keep(options.state_dir, config.cluster, name, key, leads=leads)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line of one party."""
    options = command_line.parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(SaidOften())
    if options.log_json:
        log_as_json(options.name)
    if options.log_queries:
        log_queries()
    allow_descriptors()
    for noisy in ("httpx", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    def work() -> int:
        config = read_config(options.config).of_cell(options.cell)
        config = replace(config, state=options.state_dir)
        origins = [checked_origin(text) for text in options.web_origin]
        run_party(
            config,
            options.name,
            _sockets(options.name, options.listen_fd, options.listen),
            options.lifeline_fd,
            Timeouts(
                connect=options.connect_timeout,
                peer=options.peer_timeout,
                share=options.share_timeout,
                drain=options.drain_timeout,
            ),
            Doors(
                _metrics(options.name, options.metrics),
                _web(options.name, options.web, origins, config.role(options.name)),
                tuple(origins),
            ),
            _keep(config, options),
        )
        return 0

    return exit_code(work, tell=log.error) if options.log_json else exit_code(work)


if __name__ == "__main__":
    sys.exit(main())

"""`launch --init` and `--join`: the files of a cluster whose parties run on hosts of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from privserve.addresses import split_address
from privserve.config import party_names, read_config
from privserve.errors import ConfigError


def write_files(directory: Path, hosts: Sequence[str], invite: bool = False) -> int:
    """Write what the parties of a cluster on several hosts need, and say what to do with it.

    hosts: of each cell, the parties' addresses with commas between.
    """
    from privserve.authority import VALID_DAYS
    from privserve.certificates import CA_SECRET, write_cluster

    cells = [[address.strip() for address in of_cell.split(",")] for of_cell in hosts]
    names = party_names(len(cells[0]))
    for number, addresses in enumerate(cells):
        if len(addresses) != len(names):
            raise ConfigError(
                f"--hosts of cell {number} has {len(addresses)} addresses, and that of cell 0 "
                f"{len(names)}: each cell has all parties"
            )
        for address in addresses:
            split_address(address)
    parties, *further = [list(zip(names, addresses, strict=True)) for addresses in cells]
    if (directory / "cluster.toml").exists():
        raise ConfigError(f"{directory} holds a cluster already; remove it or name another --init")
    secret = directory / CA_SECRET
    path = write_cluster(directory, parties, further=further, keep=secret, make_keys=not invite)
    read_config(path)  # or it is refused before anybody is told to copy it
    if invite:
        print(f"Wrote {path}. Send each party's invitation to its host, and run there:")
        for name, address in parties:
            print(f"  {address:<24} python -m privserve.launch --join {name}.invite")
        print(
            f"Sign what comes back:  python -m privserve.certify --config {path} sign NAME.request"
        )
    else:
        print("All parties' keys are made here, which is for trying things out; see --invite.")
        print(f"Wrote {path}. Copy each party's directory to its hosts and run it there:")
    for number, cell in enumerate([parties, *further]):
        if invite and not number:
            continue  # it is said to whoever has made a key
        if invite:
            print(f"Cell {number}, on other hosts, with a copy of that party's directory:")
        for name, address in cell:
            command = f"python -m privserve.launch --party {name} --config {name}/cluster.toml"
            print(f"  {address:<24} {command}" + (f" --cell {number}" if number else ""))
    print(
        f"Certificates are good for {VALID_DAYS} days; {secret} is needed to renew and revoke them:"
    )
    print("  keep it where a thief of this disk does not find it.")
    print(f"Then share a model from here:  python -m privserve.launch --config {path} --model FILE")
    print(f"Let a client in with:  python -m privserve.clients --config {path} add NAME")
    return 0


def join_cluster(invitation: Path, directory: Path) -> int:
    """Make this host's key for the cluster of an invitation, and say what to do next."""
    from privserve.certificates import join

    asked, fingerprint = join(invitation, directory)
    home = asked.parent
    print(f"Made a key in {home}, which never leaves this host. Its fingerprint: {fingerprint}")
    print(
        f"Send {asked} to the model owner, and put the {home.name}.pem that comes back into {home}."
    )
    print(f"Then:  python -m privserve.launch --party {home.name} --config {home / 'cluster.toml'}")
    return 0

"""`launch --init` and `--join`: the files of a cluster whose parties run on hosts of their own."""

from __future__ import annotations

from pathlib import Path

from privserve.addresses import split_address
from privserve.config import party_names
from privserve.errors import ConfigError


def write_files(directory: Path, hosts: str, invite: bool = False) -> int:
    """Write what the parties of a cluster on several hosts need, and say what to do with it."""
    from privserve.authority import VALID_DAYS
    from privserve.certificates import CA_SECRET, write_cluster

    addresses = hosts.split(",")
    names = party_names(len(addresses))
    parties = []
    for name, address in zip(names, addresses, strict=True):
        split_address(address.strip())
        parties.append((name, address.strip()))
    if (directory / "cluster.toml").exists():
        raise ConfigError(f"{directory} holds a cluster already; remove it or name another --init")
    secret = directory / CA_SECRET
    path = write_cluster(directory, parties, keep=secret, make_keys=not invite)
    if invite:
        print(f"Wrote {path}. Send each party's invitation to its host, and run there:")
        for name, address in parties:
            print(f"  {address:<24} python -m privserve.launch --join {name}.invite")
        print(
            f"Sign what comes back:  python -m privserve.certify --config {path} sign NAME.request"
        )
    else:
        print("All parties' keys are made here, which is for trying things out; see --invite.")
        print(f"Wrote {path}. Copy each party's directory to its host and run it there:")
        for name, address in parties:
            command = f"python -m privserve.launch --party {name} --config {name}/cluster.toml"
            print(f"  {address:<24} {command}")
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

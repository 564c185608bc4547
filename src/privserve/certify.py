"""Sign, renew and revoke parties' certificates: python -m privserve.certify

python -m privserve.certify sign bob.request       let a party in that made its key itself
python -m privserve.certify renew                  sign the keys that lie here anew
python -m privserve.certify revoke bob             bob's certificates count no more
python -m privserve.certify list

Run where the model owner's files are (--config), with the authority's secret (--secret). Parties
read a new certificate within a minute, without a restart; they are told at once what is revoked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from privserve import authority
from privserve.authority import VALID_DAYS, Authority, known_revoked, read_issued
from privserve.certificates import CA_SECRET, renew, sign
from privserve.cluster import Cluster
from privserve.command_lines import certs as command_line
from privserve.config import ClusterConfig, read_config
from privserve.errors import ConfigError
from privserve.exit_codes import exit_code
from privserve.files import write_file
from privserve.terminal import table
from privserve.tls import REVOKED_FILE


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, checked."""
    parser = command_line.parser()
    options = parser.parse_args(arguments)
    if getattr(options, "days", 1) is None:
        options.days = VALID_DAYS
    if getattr(options, "days", 1) < 1:
        parser.error("--days must be at least 1")
    return options


def run(options: argparse.Namespace) -> str:
    """Do what was asked for; returns what to tell."""
    config = read_config(options.config)
    if options.command == "list":
        return (
            json.dumps([asdict(one) for one in known(config)]) if options.json else listed(config)
        )
    said = _done(options, config, options.secret or config.path.parent / CA_SECRET)
    return json.dumps({"said": said}) if options.json else said


def _done(options: argparse.Namespace, config: ClusterConfig, secret: Path) -> str:
    """Sign, renew or revoke; returns what to tell."""
    home = config.path.parent
    if options.command == "sign":
        asked = options.request.read_bytes()
        name = sign(config, secret, asked, options.days)
        _, key = authority.read_request(asked)
        return (
            f"signed the key {authority.fingerprint(key)}: ask whoever runs {name} whether that is "
            f"theirs, then send {home / f'{name}.pem'} back, to lie in their directory {name}"
        )
    if options.command == "renew":
        renewed = renew(config, secret, options.days)
        if not renewed:
            raise ConfigError(f"no party's key lies in {home}; parties send their requests again")
        return f"renewed: {', '.join(renewed)}; copy each NAME/NAME.pem to its party's host"
    return revoke(config, secret, options.party)


def revoke(config: ClusterConfig, secret: Path, party: str) -> str:
    """Put all certificates of a party on the list, and tell the parties."""
    config.rank(party)
    serials = read_issued(config).get(party, [])
    before = known_revoked(config.ca)
    held = before.serials if before else ()
    listed_now = [*held, *(serial for serial in serials if serial not in held)]
    signed = Authority.load(config.path.parent, secret).revoked(listed_now)
    write_file(config.path.parent / REVOKED_FILE, signed)
    said = f"{party}'s certificates count no more"
    cluster = Cluster.connect(config.path, wait=False)
    try:
        missed = cluster.tell_revoked(signed.decode(), party)
    finally:
        cluster.stop()
    if missed:
        names = " and ".join(missed)
        return (
            f"{said}, but {names} cannot be told now: put {REVOKED_FILE} beside ca.pem there. "
            "Clients learn of it from the parties that have it"
        )
    return f"{said}; the other parties know, and clients learn of it from them"


@dataclass(frozen=True)
class PartyCertificates:
    """What is known here of one party's certificates."""

    party: str
    certificates: int
    revoked: int
    days_left: float | None
    """Of the one that lies here; None where there is none."""


def known(config: ClusterConfig) -> list[PartyCertificates]:
    """Return what is known here of each party's certificates."""
    listed_now, issued = known_revoked(config.ca), read_issued(config)
    revoked = listed_now.serials if listed_now else ()
    found = []
    for party in config.parties:
        home = config.path.parent
        serials, days = issued.get(party.name, []), None
        for path in (home / f"{party.name}.pem", home / party.name / f"{party.name}.pem"):
            if path.exists():
                days = authority.days_left(path)
        gone = sum(serial in revoked for serial in serials)
        found.append(PartyCertificates(party.name, len(serials), gone, days))
    return found


def listed(config: ClusterConfig) -> str:
    """The parties' certificates as a table."""
    rows: list[Sequence[str]] = [("party", "certificates", "revoked", "days left")]
    for one in known(config):
        days = "unknown" if one.days_left is None else f"{one.days_left:.0f}"
        rows.append((one.party, str(one.certificates), str(one.revoked), days))
    return "\n".join(table(rows, right=range(1, 4)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)

    def work() -> int:
        print(run(options))
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())

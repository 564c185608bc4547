from __future__ import annotations

import re
from pathlib import Path

import pytest

from privserve.addresses import join_address, split_address
from privserve.config import format_config, party_names, read_config
from privserve.errors import ConfigError

PARTIES = [
    ("alice", "localhost:4000"),
    ("bob", "10.0.0.2:4001"),
    ("carol", "[::1]:4002"),
]
OWNER = bytes(range(32))
TEXT = format_config(PARTIES, "c", OWNER)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(format_config(PARTIES, "c1", OWNER))
    return path


def test_what_is_written_is_read_back(toml: Path) -> None:
    config = read_config(toml)
    assert [(p.name, p.address) for p in config.parties] == PARTIES
    assert (config.cluster, config.owner) == ("c1", OWNER)
    assert config.path == toml


def test_file_names_are_relative_to_the_cluster_file(toml: Path) -> None:
    config = read_config(str(toml))
    assert config.ca == toml.parent / "ca.pem"
    assert config.parties[1].cert == toml.parent / "bob.pem"
    assert config.parties[1].key == toml.parent / "bob.key"


def test_the_last_party_is_the_dealer_and_the_first_one_leads(toml: Path) -> None:
    config = read_config(toml)
    assert config.dealer.name == "carol"
    assert [p.name for p in config.compute] == ["alice", "bob"]
    assert [config.role(p.name) for p in config.parties] == ["compute", "compute", "dealer"]
    assert config.rank("carol") == 2


def test_an_unknown_party_is_named_together_with_the_known_ones(toml: Path) -> None:
    with pytest.raises(ConfigError, match="no party 'mallory'; it has: alice, bob, carol"):
        read_config(toml).rank("mallory")


CELLS = """
[[cell]]
alice = "a.example:1"
bob = {address = ["b.example:2", "10.0.0.9:2"], listen = "0.0.0.0:2"}
carol = ["c.example:3"]

[[cell]]
alice = "a.example:4"
bob = "b.example:5"
carol = "c.example:6"
"""


def test_a_file_without_cells_is_one(toml: Path) -> None:
    config = read_config(toml)
    assert config.cells == (config,)
    with pytest.raises(ConfigError, match="no cell 1; its cells are 0 to 0"):
        config.of_cell(1)


def test_the_parties_of_further_cells_are_elsewhere_with_the_same_names_and_files(
    toml: Path,
) -> None:
    toml.write_text(toml.read_text() + CELLS)
    first, second, third = read_config(toml).cells
    assert [cell.cell for cell in (first, second, third)] == [0, 1, 2]
    assert [p.address for p in first.parties] == [address for _, address in PARTIES]
    assert [p.address for p in third.parties] == ["a.example:4", "b.example:5", "c.example:6"]
    bob = second.parties[1]
    assert bob.addresses == ("b.example:2", "10.0.0.9:2")
    assert bob.listen == ("0.0.0.0:2",)
    for cell in (second, third):
        assert [(p.name, p.cert, p.key) for p in cell.parties] == [
            (p.name, p.cert, p.key) for p in first.parties
        ]
        assert cell.identity("bob") == first.identity("bob")
        assert cell.cells == (first, second, third)


def test_cells_that_are_written_are_read_back(tmp_path: Path) -> None:
    further = [[(name, f"h:{10 * n + i}") for i, (name, _) in enumerate(PARTIES)] for n in (1, 2)]
    path = tmp_path / "cluster.toml"
    path.write_text(format_config(PARTIES, "c", OWNER, further))
    cells = read_config(path).cells
    assert [[(p.name, p.address) for p in cell.parties] for cell in cells] == [PARTIES, *further]


BAD_CELLS = {
    "a party is missing": (
        CELLS.replace('bob = "b.example:5"', ""),
        "cell 2 has to give an address to each of alice, bob, carol, and not to alice, carol",
    ),
    "a party too many": (CELLS + 'dave = "d.example:7"', "cell 2 has to give .* carol, dave"),
    "no address": (CELLS.replace('"a.example:4"', "4"), "'address' is missing or no address"),
    "an address of another cell": (
        CELLS.replace("b.example:5", "10.0.0.2:4001"),
        r"bob of cell 2 has the address 10\.0\.0\.2:4001, and so has bob of another cell",
    ),
    "no tables": ("cell = 3", r"cells are \[\[cell\]\] tables"),
    "too many": ("".join("[[cell]]\n" for _ in range(64)), "at most 64 cells"),
}


@pytest.mark.parametrize(("added", "complaint"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_a_bad_cell_is_refused_with_its_cause(toml: Path, added: str, complaint: str) -> None:
    text = toml.read_text()
    toml.write_text(f"{added}\n{text}" if added == "cell = 3" else text + added)
    with pytest.raises(ConfigError, match=complaint):
        read_config(toml)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*nowhere\.toml; start a cluster"):
        read_config(tmp_path / "nowhere.toml")


def test_a_partys_identity_is_a_name_that_no_host_can_have(toml: Path) -> None:
    assert read_config(toml).identity("bob") == "bob.c1.privserve.invalid"


def test_more_compute_parties_than_ranges_have_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 32 compute parties"):
        party_names(34)


BAD_FILES = {
    "too many parties": (
        format_config([(f"p{i}", "h:1") for i in range(34)], "c", OWNER),
        "at most 32 compute parties",
    ),
    "no owner": (TEXT.replace("owner =", "x ="), "'owner' is missing"),
    "an owner's key that is cut": (format_config(PARTIES, "c", OWNER[:31]), "Ed25519 public key"),
    "an owner's key that is none": (re.sub('owner = ".*"', 'owner = "?"', TEXT), "Ed25519"),
    "a cluster with dots": (format_config(PARTIES, "a.b", OWNER), "'a.b' cannot be a name"),
    "a party with dots": (TEXT.replace('"bob"', '"bob.c"'), "'bob.c' cannot be a name"),
    "not TOML": ("[[party", "cannot be read as TOML"),
    "not text": (b"\xff\xfe\x00", "cannot be read as TOML"),
    "no parties": ('ca = "ca.pem"', r"no \[\[party\]\] tables"),
    "parties that are no tables": ("party = [1, 2, 3]", r"no \[\[party\]\] tables"),
    "two parties": (format_config(PARTIES[:2], "c", OWNER), "names 2 parties"),
    "a name twice": (format_config([PARTIES[0], *PARTIES[:2]], "c", OWNER), "name twice: alice"),
    "no authority": (TEXT.replace("ca =", "x ="), "'ca' is missing"),
    "a number for a name": (
        TEXT.replace('name = "bob"', "name = 5"),
        "'name' is missing or not a text",
    ),
    "an address without a port": (
        TEXT.replace("localhost:4000", "localhost"),
        "'localhost' is not an address",
    ),
}


@pytest.mark.parametrize(("content", "complaint"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_with_its_cause(
    tmp_path: Path, content: str | bytes, complaint: str
) -> None:
    path = tmp_path / "cluster.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=complaint):
        read_config(path)


def test_a_directory_is_not_a_cluster_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("localhost:4000", ("localhost", 4000)), ("[::1]:0", ("::1", 0)), ("h:65535", ("h", 65535))],
)
def test_addresses_are_split_into_host_and_port(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts
    assert join_address(*parts) == text


@pytest.mark.parametrize("text", ["", "localhost", ":4000", "host:", "host:x", "h:65536", "h:-1"])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write host:port"):
        split_address(text)


def test_parties_have_the_names_of_the_trade_and_carol_deals() -> None:
    assert party_names(3) == ["alice", "bob", "carol"]
    assert party_names(5) == ["alice", "bob", "dave", "erin", "carol"]
    many = party_names(33)
    assert len(set(many)) == 33
    assert many[-1] == "carol"


@pytest.mark.parametrize("count", [-1, 0, 2])
def test_fewer_than_three_parties_are_no_cluster(count: int) -> None:
    with pytest.raises(ConfigError, match="at least 3 parties"):
        party_names(count)

"""What the pages tell people to type and to click is there."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml
from pages import PAGES, Block, anchors, commands, fenced, links, name_of
from programs import is_there, options, parser_of, program_in, strange_options, subcommands
from serving import ROOT

import privserve as ps
from privserve.commands import COMMANDS

KINDS = {
    "alice": ps.Worker,
    "client": ps.Client,
    "cluster": ps.Cluster,
    "model": ps.SecureModel,
    "ps": ps,
}
"""What the names of the examples stand for, where an example does not make them itself."""
ELSEWHERE = {"--cascade", "--project-name"}
"""Options of other programs that pages name."""
BLOCKS = [block for page in PAGES for block in fenced(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def titled(block: Block) -> str:
    return f"{block.page}: {block.code.strip().splitlines()[0][:40]}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_a_program_with_these_options(page: Path) -> None:
    wrong = []
    for words in commands(page):
        if (program := program_in(words)) is None or not program[0].rpartition(".")[2].islower():
            continue
        module, rest = program
        if not is_there(module):
            wrong.append(f"there is no {module}: {' '.join(words)}")
            continue
        wrong += [f"{module} has no {option}" for option in strange_options(module, rest)]
        parser = parser_of(module)
        known = subcommands(parser) if parser else {}
        if known and rest and not {*known, "--help"} & set(rest):
            wrong.append(f"no subcommand of {module} in: {' '.join(words)}")
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_is_named_by_itself_is_one_of_some_program(page: Path) -> None:
    modules = {module for module, *_ in COMMANDS.values()} | {"scripts.convert", "scripts.query"}
    modules |= {"privserve.bench.load", "privserve.bench.rows", "scripts.growing"}
    known = set[str]().union(*(options(p) for p in map(parser_of, sorted(modules)) if p))
    first = (words[0].partition("=")[0] for words in commands(page))
    named = {word for word in first if re.fullmatch(r"--[a-z][a-z-]+", word)}
    assert named <= known | ELSEWHERE


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_target_of_make_and_every_extra_is_there(page: Path) -> None:
    for words in commands(page):
        if words[0] == "make" and len(words) > 1:
            assert words[1].rstrip(",.") in TARGETS, words
    for extra in re.findall(r"privserve\[(\w+)\]", page.read_text(encoding="utf-8")):
        assert extra in EXTRAS


def test_commands_are_found_at_all() -> None:
    found = {(program_in(words) or ("", []))[0] for page in PAGES for words in commands(page)}
    assert {"privserve.launch", "privserve.batch", "scripts.convert", "scripts.query"} <= found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_title(page: Path) -> None:
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("block", PYTHON, ids=titled)
def test_every_name_of_ours_in_an_example_is_there(block: Block) -> None:
    tree = ast.parse(block.code)
    made = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    known = {name: kind for name, kind in KINDS.items() if name not in made}
    for node in ast.walk(tree):
        target = value = None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.withitem):
            target, value = node.optional_vars, node.context_expr
        if isinstance(target, ast.Name) and isinstance(value, ast.Call):
            made_by = ast.unparse(value.func)
            if made_by == "ps.load_model":
                known[target.id] = ps.SecureModel
            elif made_by.startswith("ps."):
                known[target.id] = getattr(ps, made_by.removeprefix("ps."))
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            of = known.get(call.func.value.id)
            if of is not None:
                called = getattr(of, call.func.attr)  # AttributeError: no such name
                parameters = inspect.signature(called).parameters
                for keyword in call.keywords:
                    assert keyword.arg in parameters, f"{call.func.attr}({keyword.arg}=)"


@pytest.mark.parametrize("block", [block for block in PYTHON if block.runs], ids=titled)
def test_examples_that_need_no_cluster_run(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    example = tmp_path / "example.py"
    example.write_text(block.code, encoding="utf-8")
    runpy.run_path(str(example))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("yaml", "toml")], ids=titled)
def test_files_that_are_shown_can_be_read(block: Block) -> None:
    assert yaml.safe_load(block.code) if block.language == "yaml" else tomllib.loads(block.code)


def test_how_it_works_and_the_tutorial_have_examples_that_run() -> None:
    assert {b.page for b in PYTHON if b.runs} == {"docs/how-it-works.md", "docs/tutorial.md"}

"""Measure engines on this machine: python -m privserve.bench

Every engine and party count gets its own real processes on real TLS channels, all of them
alive during the whole run; measurements go round robin, so that a noisy minute hits all
alike, and every figure is a median. "online" is the time that a compute party spends on a
batch that finds its randomness ready (queries come one at a time, with a pause for the
dealer); "queries/s" runs batches back to back for longer than the pools last, so dealing
and all per-query preparation are in it. HTTP is not; `--load` measures what clients see.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from privserve.bench import command_line
from privserve.bench.large import run_large
from privserve.bench.load import parse as parse_load
from privserve.bench.load import run_load
from privserve.bench.measure import measure, measure_plaintext
from privserve.bench.network import parse as parse_network
from privserve.bench.network import run_network
from privserve.bench.report import Result, machine, plot, ratios, table
from privserve.bench.runs import Bench
from privserve.bench.subjects import Subject, digits_subject, resnet_subject, wide_subject
from privserve.engines import load_engine
from privserve.exit_codes import exit_code
from privserve.interrupts import keep_interrupts


def subjects(options: argparse.Namespace) -> list[Subject]:
    """Return the models that were asked for."""
    chosen = [digits_subject(options.model)]
    if options.sizes:
        chosen += [wide_subject(factor) for factor in (1, 2, 4)]
        chosen.append(resnet_subject())
    return chosen


def run(options: argparse.Namespace) -> list[Result]:
    """Measure everything that was asked for."""
    results: list[Result] = []
    for number, subject in enumerate(subjects(options)):
        batches = options.batch if number == 0 else [1]
        party_counts = options.parties if number == 0 else [3]
        engines = options.engine if number == 0 else [e for e in options.engine if e == "ottt"]
        benches: list[Bench] = []
        print(f"{subject.name}: setting up", file=sys.stderr, flush=True)
        try:
            for engine in engines:
                prepared = load_engine(engine).prepare(
                    subject.converted.onnx, input_range=subject.input_range
                )
                for parties in party_counts:
                    benches.append(Bench(subject.name, prepared, parties))
                    benches[-1].wait_ready()
            plain = [measure_plaintext(subject, batch, options.rounds) for batch in batches]
            results += plain + measure(subject, benches, batches, options.rounds)
        finally:
            for bench in benches:
                bench.close()
    return results


OTHERS = {"--load": (parse_load, run_load), "--network": (parse_network, run_network)}
"""Benchmarks with options of their own."""


def measure_all(options: argparse.Namespace, other: str | None) -> int:
    """Measure what the options ask for, and print it; returns the exit code."""
    facts = machine()
    if other is not None:
        return OTHERS[other][1](options, facts)
    if options.large:
        return run_large(options, facts)
    results = run(options)
    if options.json:
        print(json.dumps({"machine": facts, "results": [asdict(r) for r in results]}, indent=1))
    else:
        print(f"{facts['processor']}, {facts['cores']} cores; load before: {facts['load_before']}")
        print(table(results))
        print(ratios(results))
    if options.plot:
        plot(results, options.plot)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options, checked."""
    parser = command_line.parser()
    options = parser.parse_args(arguments)
    if min(options.parties) < 3:
        parser.error("--parties counts the dealer: at least 3")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    for name in OTHERS:  # abbreviated, or the other parser would have it
        if getattr(options, name[2:]):
            parser.error(f"write {name} in full")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    other = next((name for name in OTHERS if name in given), None)
    options = OTHERS[other][0](given) if other else parse(given)
    keep_interrupts()  # `kill` ends all processes as Ctrl-C does
    # As the launcher sets it: parties share the cores, and torch's threads would fight.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return exit_code(lambda: measure_all(options, other))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # All processes are gone by now. After Ctrl-C in code that is made of text, Python would end by
    # the signal although it was handled.
    os._exit(code)

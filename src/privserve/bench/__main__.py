"""Measure engines on this machine: python -m privserve.bench

Every engine and party count gets its own real processes on real TLS channels, all of them
alive during the whole run; measurements go round robin, so that a noisy minute hits all
alike, and every figure is a median. "online" is the time that a compute party spends on a
batch that finds its randomness ready (queries come one at a time, with a pause for the
dealer); "queries/s" runs batches back to back for longer than the pools last, so dealing
and all per-query preparation are in it. HTTP is not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from privserve.bench.large import run_large
from privserve.bench.measure import measure, measure_plaintext
from privserve.bench.report import Result, machine, plot, ratios, table
from privserve.bench.runs import Bench
from privserve.bench.subjects import EXAMPLES, Subject, digits_subject, resnet_subject, wide_subject
from privserve.engines import load_engine
from privserve.exit_codes import exit_code


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


def numbers(text: str) -> list[int]:
    """Return [1, 8] from "1,8"."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 1,8,32")
    return values


def measure_all(options: argparse.Namespace) -> int:
    """Measure what the options ask for, and print it; returns the exit code."""
    facts = machine()
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m privserve.bench", description=__doc__)
    parser.add_argument("--engine", type=lambda t: t.split(","), default=["crypten", "ottt"])
    parser.add_argument("--batch", type=numbers, default=[1, 8, 32, 128], metavar="1,8,...")
    parser.add_argument(
        "--parties", type=numbers, default=[3, 4], metavar="3,4", help="with dealer"
    )
    parser.add_argument("--model", type=Path, default=EXAMPLES / "digits-model.h5")
    parser.add_argument("--rounds", type=int, default=3, help="of the round robin")
    parser.add_argument("--sizes", action="store_true", help="also wider models and a ResNet-20")
    parser.add_argument(
        "--large",
        action="append",
        metavar="MODEL",
        help="instead, single queries through resnet50, mobilenetv2, densenet121 or a file",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw latency and throughput")
    options = parser.parse_args(arguments)
    if min(options.parties) < 3:
        parser.error("--parties counts the dealer: at least 3")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    # As the launcher sets it: parties share the cores, and torch's threads would fight.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return exit_code(lambda: measure_all(options))


if __name__ == "__main__":
    sys.exit(main())

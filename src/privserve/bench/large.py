"""One private query through a network of real size: python -m privserve.bench --large resnet50

A pack of such a network takes about a gigabyte, so it is dealt for one query at a time, and
what a query costs is dealing and answering together. Both are reported, with the bytes, the
largest memory that each process ever had, and the distance from the float network's logits.

The architectures are Keras Applications' own, with random weights (the protocol's cost does
not depend on their values) and batch statistics from a random batch, so that activations
stay in the range that a trained network's have. Keras is needed, from the `dev` extra; a
file of one's own needs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.bench.runs import Bench
from privserve.bench.subjects import Subject
from privserve.compiler.ranges import synthetic_samples
from privserve.engines import load_engine
from privserve.errors import ConfigError

APPLICATIONS = {"resnet50": "ResNet50", "mobilenetv2": "MobileNetV2", "densenet121": "DenseNet121"}
BATCH = 8
"""Pictures that the batch statistics come from."""


@dataclass
class LargeResult:
    """What queries of one at a time cost; times in seconds, medians; see --json."""

    model: str
    weights: int
    compile_seconds: float
    setup_seconds: float
    """Sharing excluded: parties start, open the masked weights and get the first pack."""
    dealing_seconds: float
    online_seconds: float
    query_seconds: float
    """Dealing and answering, one after the other."""
    plaintext_seconds: float
    bytes_online: float
    """Sent by one compute party to the others, per query."""
    bytes_dealt: float
    exchanges: float
    peak_memory_mb: dict[str, float]
    """By party: the most that its process ever held."""
    logit_spread: float
    """The standard deviation of the float network's logits."""
    max_abs_error: float
    """Of the logits."""
    same_class: bool

    @property
    def memory_mb(self) -> float:
        """All processes' peaks together."""
        return sum(self.peak_memory_mb.values())


def application(name: str, **options: Any) -> Any:
    """Build the Keras model `name` of APPLICATIONS, random, with sane batch statistics.

    options: for the Keras function, such as input_shape or alpha.
    """
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError:
        raise ConfigError(f"'{name}' is built with Keras: pip install 'privserve[dev]'") from None
    net = getattr(keras.applications, APPLICATIONS[name])(weights=None, **options)
    normalisations = [
        layer for layer in net.layers if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in normalisations]
    for layer in normalisations:
        layer.momentum = 0.0  # one batch replaces the statistics
    net(synthetic_samples(net.input_shape[1:], 0.0, 1.0, BATCH).astype(np.float32), training=True)
    for layer, momentum in zip(normalisations, momenta, strict=True):
        layer.momentum = momentum
    return net


def large_subject(name: str, **options: Any) -> Subject:
    """Return a network of APPLICATIONS, or a file, with random pictures in [0, 1]."""
    import converters

    if name.lower() in APPLICATIONS:
        converted = converters.convert(application(name.lower(), **options))
    elif Path(name).exists():
        converted = converters.convert(name)
    else:
        raise ConfigError(f"'{name}' is no file and none of {', '.join(APPLICATIONS)}")
    if len(converted.inputs) != 1:
        raise ConfigError(f"{name} takes {len(converted.inputs)} inputs; one is supported here")
    shape = tuple(d for d in converted.inputs[0].shape[1:] if d is not None)
    return Subject(name, converted, synthetic_samples(shape, 0.0, 1.0, 2), (0.0, 1.0))


def measure_large(subject: Subject, queries: int) -> LargeResult:
    """Answer `queries` queries one after the other, each with a pack dealt for it alone."""
    started = time.perf_counter()
    prepared = load_engine("ottt").prepare(subject.converted.onnx, input_range=subject.input_range)
    compiled = time.perf_counter()
    weights = sum(p.size for p in prepared.parameters.values())
    bench = Bench(subject.name, prepared, 3, pool_queries=1, ready_packs=1)
    del prepared
    try:
        bench.wait_ready()
        ready = time.perf_counter()
        x = subject.batch(1)
        # The first query finds its pack dealt; every later one waits for its own.
        first, logits = bench.run(x, 1, 0)
        reports = [bench.run(x, 1, 0)[0] for _ in range(queries)]
        memory = bench.peak_memory_mb()
    finally:
        bench.close()
    seconds, expected = plaintext(subject, x)
    dealing = [r.seconds[0] * r.parts["waiting"] for r in reports]
    total = [r.seconds[0] for r in reports]
    online = [t - d for t, d in zip(total, dealing, strict=True)]
    return LargeResult(
        model=subject.name,
        weights=weights,
        compile_seconds=compiled - started,
        setup_seconds=ready - compiled,
        dealing_seconds=statistics.median(dealing),
        online_seconds=statistics.median(online),
        query_seconds=statistics.median(total),
        plaintext_seconds=seconds,
        bytes_online=first.bytes_online,
        bytes_dealt=first.bytes_dealt_per_query,
        exchanges=first.exchanges,
        peak_memory_mb=memory,
        logit_spread=float(expected.std()),
        max_abs_error=float(np.abs(logits - expected).max()),
        same_class=bool(logits.argmax() == expected.argmax()),
    )


def plaintext(subject: Subject, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return the seconds that torch takes for x on one thread, as parties have, and the logits."""
    import torch

    torch.set_num_threads(1)
    logits = subject.logits(x)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subject.logits(x)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), logits


def report(result: LargeResult) -> str:
    """Return the result for people."""
    memory = ", ".join(f"{name} {mb:,.0f}" for name, mb in result.peak_memory_mb.items())
    error = result.max_abs_error / result.logit_spread
    rows = [
        ("weights", f"{result.weights:,}"),
        ("compiling", f"{result.compile_seconds:.1f} s"),
        ("setting up, first pack included", f"{result.setup_seconds:.1f} s"),
        ("dealing, per query", f"{result.dealing_seconds:.2f} s"),
        ("answering (online), per query", f"{result.online_seconds:.2f} s"),
        ("dealing and answering", f"{result.query_seconds:.2f} s"),
        ("plaintext torch, one thread", f"{result.plaintext_seconds:.3f} s"),
        ("sent online, per party", f"{result.bytes_online / 1e6:.1f} MB"),
        ("dealt", f"{result.bytes_dealt / 1e6:.1f} MB"),
        ("exchanges", f"{result.exchanges:.0f}"),
        ("peak memory, MB", f"{memory}; together {result.memory_mb:,.0f}"),
        ("largest error of a logit", f"{result.max_abs_error:.1e}, {error:.1%} of their spread"),
        ("class", "as in plaintext" if result.same_class else "NOT as in plaintext"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join([result.model, *(f"  {name:{width}}  {value}" for name, value in rows)])


def run_large(options: argparse.Namespace, facts: Mapping[str, Any]) -> int:
    """Measure and print each network of `options.large`; facts: about the machine."""
    results = []
    for name in options.large:
        print(f"{name}: converting, compiling, setting up", file=sys.stderr, flush=True)
        results.append(measure_large(large_subject(name), options.rounds))
    if options.json:
        print(json.dumps({"machine": facts, "results": [asdict(r) for r in results]}, indent=1))
    else:
        print(f"{facts['processor']}, {facts['cores']} cores; load before: {facts['load_before']}")
        print("\n".join(report(r) for r in results))
    return 0

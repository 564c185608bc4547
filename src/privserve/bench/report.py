"""What `privserve.bench` reports: the table, the ratios, the plot, the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privserve import text_table
from privserve.errors import ConfigError


@dataclass
class Result:
    """One line of the table; see --json."""

    model: str
    engine: str
    parties: int
    """Compute parties and the dealer; 0 for plaintext."""
    batch: int
    online_ms: float
    p90_ms: float
    queries_per_s: float
    bytes_online_per_query: float = 0
    """Sent by one compute party to the others."""
    bytes_dealt_per_query: float = 0
    """Received from the dealer, by all parties together."""
    exchanges: float = 0
    """Per batch."""
    max_abs_error: float = 0
    """Of the logits, against the float model."""
    share_of_time: dict[str, float] = field(default_factory=dict)
    """Of the online time: compute, exchange, waiting for packs (where the engine counts)."""
    party_memory_mb: float = 0
    """The largest compute party's resident memory."""


def table(results: Sequence[Result]) -> str:
    """Return the results as a table for people."""
    head = (
        "model",
        "engine",
        "parties",
        "batch",
        "online ms",
        "p90 ms",
        "queries/s",
        "kB online",
        "kB dealt",
        "exchanges",
        "max error",
        "compute/exchange/wait",
        "MB",
    )
    rows: list[Sequence[str]] = [head]
    for r in results:
        parts = r.share_of_time
        shares = "/".join(
            f"{parts[k]:.0%}" for k in ("compute", "exchange", "waiting") if k in parts
        )
        rows.append(
            (
                r.model,
                r.engine,
                str(r.parties or "-"),
                str(r.batch),
                f"{r.online_ms:.3f}",
                f"{r.p90_ms:.3f}",
                f"{r.queries_per_s:,.0f}",
                f"{r.bytes_online_per_query / 1e3:.1f}",
                f"{r.bytes_dealt_per_query / 1e3:.1f}",
                f"{r.exchanges:.0f}",
                f"{r.max_abs_error:.1e}",
                shares,
                f"{r.party_memory_mb:.0f}",
            )
        )
    return "\n".join(text_table.table(rows, right=range(2, len(head))))


def ratios(results: Sequence[Result]) -> str:
    """Say how much faster ottt is than crypten, where both were measured."""
    lines = []
    by_key = {(r.model, r.engine, r.parties, r.batch): r for r in results}
    for (model, engine, parties, batch), fast in by_key.items():
        slow = by_key.get((model, "crypten", parties, batch))
        if engine == "ottt" and slow is not None:
            lines.append(
                f"{model}, {parties} parties, batch {batch}: ottt is "
                f"{slow.online_ms / fast.online_ms:.0f}x faster online than crypten, "
                f"{fast.queries_per_s / slow.queries_per_s:.0f}x in queries/s"
            )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    model = platform.processor() or platform.machine()
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    ):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of this many inches; ConfigError where there is none."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigError("--plot needs matplotlib: pip install 'privserve[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def plot(results: Sequence[Result], target: Path) -> None:
    """Draw latency and throughput by batch and engine."""
    drawn = figure(11, 4.5)
    left, right = drawn.subplots(1, 2)
    series: dict[str, list[Result]] = {}
    for r in results:
        suffix = f", {r.parties} parties" if r.parties else ""
        series.setdefault(f"{r.model}: {r.engine}{suffix}", []).append(r)
    for label, line in series.items():
        line.sort(key=lambda r: r.batch)
        sizes = [r.batch for r in line]
        left.plot(sizes, [r.online_ms for r in line], marker="o", label=label)
        right.plot(sizes, [r.queries_per_s for r in line], marker="o", label=label)
    for axes, title in ((left, "online latency of a batch, ms"), (right, "queries per second")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("batch")
        sizes = sorted({r.batch for r in results})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_title(title)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    drawn.savefig(target, dpi=120)

"""What does BENCHMARKS.md say? The figures of one run of `make bench`."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MARK = "<!-- measured -->"
PLACE = Path(__file__).parents[2] / "BENCHMARKS.md"

NAMES = {
    "zsl": "zero-shot recording",
    "icl": "icl recording",
    "gd": "gd, all demonstrations",
    "lcgd": "lcgd, all demonstrations",
    "metrics": "scores with intervals",
}


def write_table(found: Mapping[str, Any], place: Path = PLACE) -> None:
    """Replace everything below the mark in BENCHMARKS.md."""
    if "ratios" not in found:
        return
    _draw_cost(found["linear"], place.parent / "docs" / "cost.png")
    before = place.read_text().partition(MARK)[0] if place.exists() else "# Benchmarks\n\n"
    place.write_text(f"{before}{MARK}\n\n" + "\n".join(_lines(found)) + "\n")


def _lines(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    lines = [
        f"SmolLM2-135M, float32, SST-2, {settings['shots']} shots, {settings['queries']} queries; PyTorch "
        f"{torch.__version__}, {found['threads']} threads of {_processor()}, {found['gflops']:.0f} GFLOP/s on a large "
        f"float32 product. The naive protocol was timed on {settings['sample']} queries and demonstrations and scaled.",
        "",
        "| part | naive, s | iclgd, s: median (min to max) | times faster | floor, s | over the floor |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in NAMES.items():
        entry = found[name]
        ours = statistics.median(entry["ours"])
        cells = [title, _naive(entry), _spread(entry["ours"])]
        cells.append(f"{statistics.median(entry['naive']) / ours:.1f}x" if "naive" in entry else "")
        cells += [f"{entry['floor']:.1f}", f"{ours / entry['floor']:.2f}x"] if "floor" in entry else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| whole | times faster than the naive protocol |", "|---|---|"]
    lines += [f"| {name} | {ratio:.1f}x |" for name, ratio in found["ratios"].items()]
    lines += ["", f"Peak memory of one lcgd run: {found['peak_gb']:.2f} GB.", ""]
    lines += ["![Time over tokens](docs/cost.png)", ""]
    lines += ["| queries | shots | tokens | icl recording, s | ms a token |", "|---|---|---|---|---|"]
    for queries, shots, tokens, seconds in found["linear"]["queries"] + found["linear"]["shots"]:
        lines.append(f"| {queries} | {shots} | {tokens} | {seconds:.2f} | {1000 * seconds / tokens:.2f} |")
    return lines


def _draw_cost(linear: Mapping[str, Any], place: Path) -> None:
    """Seconds of an icl recording over its tokens, as queries and as shots grow."""
    import altair as alt

    from iclgd.report.chart import DATA, Figure, themed

    labels = {"queries": "more queries, most shots", "shots": "more shots, 50 queries"}
    rows = [{"x": row[2], "y": row[3], "of": label} for name, label in labels.items() for row in linear[name]]
    x = alt.X("x:Q", title="tokens: the context and every query once")
    look = alt.Color("of:N", scale=alt.Scale(range=["#0072B2", "#D55E00"]))
    chart = (
        alt.Chart(alt.NamedData(name=DATA))
        .mark_line(point=True)
        .encode(x, alt.Y("y:Q", title="icl recording, s"), look)
    )
    Figure("cost", "", themed(chart.properties(width=300, height=170), rows), "").save(place)


def _naive(entry: Mapping[str, Any]) -> str:
    return f"{statistics.median(entry['naive']):.0f}" if "naive" in entry else ""


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from semantik_bench import stats
from semantik_bench.contenders import DEFAULT, FORWARD, PARQUET, POSTGRES
from semantik_bench.race import Entry, Race, best_peer

_HEADER = (
    "contender", "tokens/s", "spread", "to encode", "batch", "CPU s/1000", "padding", "peak MB", "min cosine",
)  # fmt: skip
_MB = 1_000_000
_SQL_WAITS = ("sql_wait_share", "write_seconds", "commit_seconds")


def row(entry: Entry, reference: Entry, profile: str, tokens: int) -> dict[str, Any]:
    """Return what is known of one entry on one profile; figures are medians over the rounds."""
    facts: dict[str, Any] = {"name": entry.contender.name, "label": entry.contender.label}
    facts |= {"versions": entry.versions, "reduced_precision": entry.contender.reduced}
    runs = entry.runs.get(profile)
    if not runs or entry.error is not None:
        return {**facts, "error": entry.error or "not measured"}
    rates = entry.rates(profile, tokens)
    facts |= {
        "tokens_per_second": median(rates),
        "rates": rates,
        "spread": stats.spread(rates),
        "ratio_to_encode_default": stats.paired_ratio(rates, reference.rates(profile, tokens)),
        "cpu_seconds_per_1000_tokens": 1000 * median(run["cpu_seconds"] for run in runs) / tokens,
        "padding_waste": stats.padding_waste(runs[-1].get("model_tokens"), tokens),
        "batch_size": entry.batch_sizes.get(profile),
        "batch_sizes_tried": entry.searched.get(profile, {}),
        "min_cosine": entry.cosines.get(profile),
        "precision": runs[-1].get("precision"),
        "load_seconds": entry.worker.load_seconds if entry.worker else None,
        "peak_tree_bytes": entry.worker.tree_peak if entry.worker else None,
        "peak_main_bytes": entry.worker.main_peak if entry.worker else None,
    }
    facts |= {key: runs[-1][key] for key in ("waits", "token_budget", "shards") if key in runs[-1]}
    for key in ("worker_seconds", "planning_seconds", "engine_seconds", *_SQL_WAITS):
        if key in runs[-1]:
            facts[key] = median(run[key] for run in runs)
    return facts


def headlines(race: Race, tokens: int, profile: str = "long") -> dict[str, Any]:
    """Return the figures that the project is held to; None where one was not measured."""

    def of(name: str, key: str = "seconds") -> list[float]:
        entry = race.entries.get(name)
        return entry.rates(profile, tokens, key) if entry and entry.error is None else []

    def ratio(left: list[float], right: list[float]) -> float | None:
        return stats.paired_ratio(left, right) if left and len(left) == len(right) else None

    postgres = race.entries.get(POSTGRES)
    runs = postgres.runs.get(profile, []) if postgres and postgres.error is None else []
    waited = [run["sql_wait_share"] for run in runs if "sql_wait_share" in run]
    peer = best_peer(race.entries.values(), profile, tokens)
    ours = [race.entries[name] for name in (FORWARD, PARQUET, POSTGRES) if name in race.entries]
    cosines = [entry.cosines[profile] for entry in ours if profile in entry.cosines]
    forward = of(FORWARD)
    return {
        "engine_vs_encode_default": ratio(forward, of(DEFAULT)),
        "engine_vs_best_peer": ratio(forward, of(peer.contender.name)) if peer else None,
        "best_peer": peer.contender.name if peer else None,
        "parquet_efficiency": ratio(of(PARQUET), forward),
        "postgres_efficiency": ratio(of(POSTGRES), forward),
        "postgres_worker_efficiency": ratio(of(POSTGRES, "worker_seconds"), forward),
        "sql_wait_share": median(waited) if waited else None,
        "min_cosine_fp32": min(cosines) if cosines else None,
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows of one profile as a Markdown table."""
    return stats.markdown(_HEADER, [_cells(one) for one in rows])


def _cells(one: dict[str, Any]) -> list[str]:
    label = one["label"]
    if "error" in one:
        return [label, f"not measured: {one['error'][:120]}", *[""] * (len(_HEADER) - 2)]
    if one["reduced_precision"]:
        label += f" ({one['precision']}: reduced)" if one["precision"] else " (reduced)"
    waste, cosine = one["padding_waste"], one["min_cosine"]
    return [
        label,
        f"{one['tokens_per_second']:,.0f}",
        f"{one['spread']:.0%}",
        f"{one['ratio_to_encode_default']:.2f}",
        str(one["batch_size"] or ""),
        f"{one['cpu_seconds_per_1000_tokens']:.3f}",
        "" if waste is None else f"{waste:.1%}",
        f"{(one['peak_tree_bytes'] or 0) / _MB:,.0f}",
        "" if cosine is None else f"{cosine:.7f}",
    ]


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield the whole report in Markdown."""
    machine, documents = result["machine"], result["documents"]
    processor = f"{machine['processor']}, {machine['threads']} threads"
    kinds = ", ".join(f"{count} {kind}" for kind, count in documents["kinds"].items())
    yield f"{processor}; {documents['documents']} documents ({kinds})"
    if result["quick"]:
        yield "A quick run on few documents: not for figures."
    for profile, facts in result["profiles"].items():
        yield ""
        yield (
            f"{profile}: {facts['chunks']:,} chunks, {facts['tokens']:,} tokens, median "
            f"{facts['median_tokens']} per chunk; median of {result['rounds']} rounds"
        )
        yield ""
        yield from table(facts["rows"])
    yield ""
    yield from (f"- {line}" for line in _beside(result))
    yield ""
    figures = [[name, _figure(name, result[name])] for name in result["headlines"]]
    yield from stats.markdown(("figure", "value"), figures)
    if result["notes"]:
        yield ""
    yield from (f"- {note}" for note in result["notes"])


def _beside(result: dict[str, Any]) -> Iterator[str]:
    """Yield what the tables have no column for."""
    for one in result["profiles"]["long"]["rows"]:
        if one.get("waits"):
            waits = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in one["waits"].items())
            yield f"{one['label']}: stages waited for others: {waits}"
        if "worker_seconds" in one:
            yield (
                f"{one['label']}: from submit to the first claim {one['planning_seconds']:.1f} s (fixed "
                f"overhead), from there to the last commit {one['worker_seconds']:.1f} s, "
                f"{one['shards']} shards"
            )
        if "sql_wait_share" in one:
            yield (
                f"{one['label']}: {one['sql_wait_share']:.1%} of the shards' time for SQL: rows written "
                f"between batches {one['write_seconds']:.2f} s, from the last vectors to the commit's end "
                f"{one['commit_seconds']:.2f} s"
            )
    for size in ("one", "ten"):
        if facts := result.get("memory", {}).get(size):
            yield (
                f"semantik embed, the whole process, {facts['documents']} documents of {facts['tokens']:,} "
                f"tokens: {facts['seconds']:.1f} s, peak {facts['peak_bytes'] / _MB:,.0f} MB"
            )
    if chunking := result.get("chunking"):
        yield (
            f"ids of chunks against those of their text alone: {chunking['equal']:,} of "
            f"{chunking['chunks']:,} equal, {chunking['different']:,} different without a known reason"
        )
        yield from (f"{count:,} chunks: {reason}" for reason, count in chunking["explained"].items())


def _figure(name: str, value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.7f}" if "cosine" in name else f"{value:.3f}"
    return str(value)


def machine(threads: int) -> dict[str, Any]:
    """Return what the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    named = (line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name"))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": next(named, platform.machine()),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": memory,
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def write(result: dict[str, Any], folder: Path) -> None:
    """Write bench.json and bench.md into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text("\n".join(lines(result)) + "\n", encoding="utf-8")

"""A run's result, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chaos.kinds import KINDS
from chaos.recovery import rank
from chaos.verdict import Verdict, counts

_SHOWN = 25


def by_kind(verdict: Verdict) -> dict[str, dict[str, Any]]:
    """Return the figures of each kind that was dealt, in seconds where a name ends in _s."""
    found = {}
    for name in KINDS:
        of_kind = [each for each in verdict.happened if each.fault.kind == name]
        if not of_kind:
            continue
        numbers = {each.fault.number for each in of_kind}
        again = [one.again for one in verdict.recoveries if one.kind == name and one.again is not None]
        found[name] = {
            "faults": sum(not each.failed for each in of_kind),
            "not_done": sum(bool(each.failed) for each in of_kind),
            "recovery_p50_s": _rounded(verdict.recovery(0.5, name)),
            "recovery_p99_s": _rounded(verdict.recovery(0.99, name)),
            "recovery_worst_s": _rounded(verdict.recovery(1.0, name)),
            "again_worst_s": _rounded(rank(again, 1.0)),
            "repeats": sum(bool(numbers & set(one.faults)) for one in verdict.repeats),
        }
    return found


def record(verdict: Verdict, **about: Any) -> dict[str, Any]:
    """Return what goes into build/chaos-SEED.json; `about` says which run it was."""
    failures = verdict.failures()
    numbers = {
        name: _rounded(value) if isinstance(value, float) else value
        for name, value in counts(verdict).items()
    }
    seconds = {one.number: one.seconds for one in verdict.recoveries}
    return {
        **about,
        **numbers,
        "passed": not failures,
        "by_kind": by_kind(verdict),
        "failures": failures,
        "unexplained": verdict.unexplained,
        "documents_failed_by_fault": verdict.failed_by_fault,
        "broker_left": verdict.broker_left,
        "recovery_limit_s": _rounded(verdict.limit),
        "each": [
            {
                "number": each.fault.number,
                "kind": each.fault.kind,
                "target": each.fault.target,
                "injected": round(each.injected, 3),
                "back": round(each.back, 3),
                "recovery_s": _rounded(seconds.get(each.fault.number)),
                "note": dict(each.note),
            }
            for each in verdict.happened
        ],
    }


def save(path: Path, data: dict[str, Any]) -> None:
    """Write the JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def table(data: dict[str, Any]) -> list[str]:
    """Return the lines that a person reads."""
    head = f"{'fault':<34}{'times':>6}{'p50 s':>8}{'p99 s':>8}{'worst s':>9}{'again s':>9}{'repeats':>9}"
    lines = [head, "-" * len(head)]
    for name, row in data["by_kind"].items():
        times = f"{row['faults']}" + (f"(-{row['not_done']})" if row["not_done"] else "")
        lines.append(
            f"{KINDS[name].text:<34}{times:>6}{_cell(row['recovery_p50_s']):>8}"
            f"{_cell(row['recovery_p99_s']):>8}{_cell(row['recovery_worst_s']):>9}"
            f"{_cell(row['again_worst_s']):>9}{row['repeats']:>9}"
        )
    lines.append("-" * len(head))
    lines.append(
        f"{'all':<34}{data['faults']:>6}{_cell(data['recovery_p50_s']):>8}{_cell(data['recovery_p99_s']):>8}"
        f"{_cell(data['recovery_worst_s']):>9}{'':>9}{data['repeats']:>9}"
    )
    ratio = data["throughput_ratio"]
    lines += [
        "",
        f"{data['documents']} documents, {data['rows']} rows: {data['lost']} lost, "
        f"{data['duplicates']} duplicates, {data['changed']} changed, "
        f"{data['unexplained_repeats']} unexplained repeats",
        f"throughput against the run without faults: {'-' if ratio is None else f'{ratio:.0%}'}; "
        f"recovery allowed (p99): {data['recovery_limit_s']:.1f} s; "
        f"poison set aside after {data['poison_attempts'] or '-'} attempts",
    ]
    if data["failed_by_fault"]:
        lines.append(f"{data['failed_by_fault']} documents failed with the fault as their reason")
    return [*lines, *_failures(data["failures"])]


def _failures(failures: Sequence[str]) -> list[str]:
    lines = [f"FAILED  {line}" for line in failures[:_SHOWN]]
    if len(failures) > _SHOWN:
        lines.append(f"FAILED  and {len(failures) - _SHOWN} more: see the JSON")
    return lines


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)

"""Embedding without a cluster: a source's documents into one Parquet file, by this process and its parsers.

The sorted listing is cut into groups. Each group's rows become a part file in a directory beside the output
when they are complete, under a name made of the group's documents, the model and the settings. A run that was
interrupted, however hard, finds the parts of its predecessor; what is missing is embedded, and all parts are
merged into the output, which appears under its name whole or not at all. The same documents and settings give
the same bytes, whether in one run or in ten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from semantik import __version__, vectors
from semantik.description import describe_model
from semantik.exceptions import NotFound, Refused, SettingsError
from semantik.groups import list_documents
from semantik.parts import SHOWN_REMARKS, Counts, Remark, Request, Run, Summary, View, canonical, state
from semantik.settings import Settings, convert, variable
from semantik.workplace import Workplace


def settings_for(env: Mapping[str, str], **given: Any) -> Settings:
    """Return settings for this process alone, from `env` with what was `given` (None: not) before it.

    No broker and no database are needed, and nothing below /etc is read. Raises SettingsError when a value
    cannot be used, or when no model is named.
    """
    values: dict[str, Any] = {}
    for item in fields(Settings):
        if text := env.get(variable(item.name), ""):
            values[item.name] = convert(item.name, text)
    values |= {name: value for name, value in given.items() if value is not None}
    if not values.get("model_dir"):
        raise SettingsError(
            "no model is named: give --model DIR, or set SEMANTIK_MODEL_DIR, to a sentence-transformers "
            "directory (the one that holds modules.json)"
        )
    # A file of vectors says exactly which model made it, whatever the environment calls it.
    return Settings(
        **{**values, "broker_url": "", "result_backend": "", "database_url": "", "model_revision": ""}
    )


def embed(request: Request, view: View, should_stop: Callable[[], bool]) -> Summary:
    """Embed what is under the source into the output file, or find that it is there already.

    `should_stop` is asked between batches; when it says true, Stopped is raised and what is finished stays
    for the next run. Raises SemantikError with the reason when it cannot be done.
    """
    root, output = request.root, request.output
    with Workplace(output) as place:
        found = None if request.force else _existing(output)
        if request.restart:
            place.clear()
        view.note(f"listing {root}")
        listing = list_documents(root, place.holds)
        if not (listing.documents or listing.refused):
            raise NotFound(f"there are no documents under {root}")
        model_dir = Path(request.settings.model_dir)
        description = describe_model(model_dir)
        name = request.settings.model or description.name
        asked = _asked(request.settings, description.revision)
        whole = listing.fingerprint(canonical(asked))
        if found is not None:
            if found["fingerprint"] == whole:
                place.clear()
                return _unchanged(output, found, place.report)
            _may_replace(found, root, description.revision, output)
        run = Run(request, listing, place, view, should_stop)
        summary = run.embed(asked)
        header = {
            "format": vectors.FORMAT,
            "release": __version__,
            "source": root,
            "model": name,
            "model_revision": description.revision,
            "dim": description.dim,
            "chunk_tokens": request.settings.chunk_tokens or description.max_tokens,
            "chunk_overlap": request.settings.chunk_overlap,
            "fingerprint": whole,
            "counts": vars(summary.counts),
        }
        run.merge(description.dim, header, summary)
        place.clear()
        return summary


def _existing(output: Path) -> dict[str, Any] | None:
    """Return the header of an earlier output. Raises Refused for a file that is not this program's."""
    if not output.exists():
        return None
    try:
        return vectors.read_header(output)
    except Refused as error:
        raise Refused(f"{error}; --force replaces it") from error


def _may_replace(found: dict[str, Any], root: str, revision: str, output: Path) -> None:
    """Raise Refused unless the new vectors take the place of older ones of the same source and model."""
    if found["source"] != root:
        raise Refused(f"{output} holds the vectors of {found['source']}: name another file, or give --force")
    if found["model_revision"] != revision:
        raise Refused(
            f"{output} holds vectors of {found['model']} {found['model_revision'][:8]}, this model is of "
            f"revision {revision[:8]}: name another file, or give --force"
        )


def _asked(settings: Settings, revision: str) -> dict[str, Any]:
    """Return all that decides what the vectors are, as far as it is known without torch."""
    names = (
        "device", "precision", "chunk_tokens", "chunk_overlap", "token_budget", "document_max_mb",
        "parse_seconds", "parse_memory_mb",
    )  # fmt: skip
    versions = {package: _version(package) for package in ("torch", "tokenizers", "pyarrow")}
    return {
        "format": vectors.FORMAT,
        "release": __version__,
        "model_revision": revision,
        "threads": settings.threads or os.cpu_count(),
        "versions": versions,
        **{name: getattr(settings, name) for name in names},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise SettingsError(
            f"{package} is not installed: embedding needs the package's extra 'worker', "
            "as in pip install './semantik-VERSION.whl[worker]'"
        ) from None


def _unchanged(output: Path, found: dict[str, Any], report: Path) -> Summary:
    counts = Counts(**found["counts"])
    remarks = []
    if report.exists():
        with report.open(encoding="utf-8") as lines:
            remarks = [
                Remark(**json.loads(line)) for line, _ in zip(lines, range(SHOWN_REMARKS), strict=False)
            ]
    return Summary(
        str(output),
        state(counts),
        True,
        counts,
        taken_over=counts.documents,
        report=str(report) if report.exists() else None,
        remarks=remarks,
    )

"""search: a question in, the nearest passages out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from semantik.cli.output import emit, json_option, printable, shorten, wants_json
from semantik.exceptions import Refused, SettingsError

if TYPE_CHECKING:
    from semantik.search import Hit

EXCERPT = 300


@click.command(short_help="Search a collection, or a file of vectors.")
@click.argument("collection", metavar="COLLECTION|FILE")
@click.argument("question")
@click.option("-n", "limit", type=click.IntRange(1, 100), default=5, show_default=True, help="How many hits.")
@click.option(
    "--model",
    "model_dir",
    metavar="DIR",
    help="For a file: the model that it was made with; default: SEMANTIK_MODEL_DIR.",
)
@json_option
def search(collection: str, question: str, limit: int, model_dir: str | None) -> None:
    """Search a collection: score, document, place in it and an excerpt of each hit.

    What ends in .parquet or is a file here is one that 'semantik embed' wrote. It is searched on this machine
    without a cluster, by the model that it was made with.
    """
    if not question.strip():
        raise click.BadParameter("is empty", param_hint="'QUESTION'")
    if collection.endswith(".parquet") or _is_file(collection):
        hits = _in_file(Path(collection), question, limit, model_dir)
        none = "holds no chunks"
    else:
        if model_dir is not None:
            raise click.BadParameter("is for files: a cluster has its model", param_hint="'--model'")
        hits = _in_collection(collection, question, limit)
        none = "holds no chunks: 'semantik jobs' shows what was embedded into it and what is under way"
    if wants_json():
        emit(hits)
        return
    if not hits:
        click.echo(f"{collection} {none}", err=True)
    for hit in hits:
        place = f"  ({printable(hit.place)})" if hit.place else ""
        click.echo(f"{hit.score:.3f}  {printable(hit.uri)}{place}")
        click.echo(f"       {shorten(printable(hit.text), EXCERPT)}\n")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # whoever came here by su or sudo may not look into the directory they are in
        return False


def _in_collection(collection: str, question: str, limit: int) -> Sequence[Hit]:
    from semantik import search as searching
    from semantik.settings import load

    try:
        settings = load()
    except SettingsError as error:
        raise SettingsError(
            f"{error}; without a cluster, name the file that 'semantik embed' wrote, which ends in .parquet"
        ) from error
    # The question is under way before the database driver is even imported.
    with searching.embedding(question) as vector:
        from semantik.database import connect

        with connect(settings, autocommit=True, application_name="semantik search") as connection:
            return searching.search(connection, settings, collection, vector, limit)


def _in_file(path: Path, question: str, limit: int, model_dir: str | None) -> Sequence[Hit]:
    from semantik.cli.embed import without_extra

    try:
        from semantik import local, vectors
        from semantik.description import describe_model
        from semantik.model import load_model

        header = vectors.read_header(path)
        settings = local.settings_for(os.environ, model_dir=model_dir)
        here = describe_model(Path(settings.model_dir))
        if here.revision != header["model_revision"]:
            raise Refused(
                f"{path} holds vectors of {header['model']} {header['model_revision'][:8]}, "
                f"{settings.model_dir} is of revision {here.revision[:8]}: questions need the same model"
            )
        return vectors.nearest(path, load_model(settings).embed_question(question), limit)
    except ModuleNotFoundError as error:
        raise without_extra(error) from error

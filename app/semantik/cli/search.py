"""search: a question in, the nearest passages out."""

from __future__ import annotations

import click

from semantik.cli.output import emit, json_option, printable, shorten, wants_json

EXCERPT = 300


@click.command(short_help="Search a collection.")
@click.argument("collection")
@click.argument("question")
@click.option("-n", "limit", type=click.IntRange(1, 100), default=5, show_default=True, help="How many hits.")
@json_option
def search(collection: str, question: str, limit: int) -> None:
    """Search a collection: score, document, place in it and an excerpt of each hit."""
    from semantik import search as searching
    from semantik.settings import load

    if not question.strip():
        raise click.BadParameter("is empty", param_hint="'QUESTION'")
    settings = load()
    # The question is under way before the database driver is even imported.
    with searching.embedding(question) as vector:
        from semantik.database import connect

        with connect(settings, autocommit=True, application_name="semantik search") as connection:
            hits = searching.search(connection, settings, collection, vector, limit)
    if wants_json():
        emit(hits)
        return
    if not hits:
        click.echo(f"{collection} holds no chunks yet: 'semantik jobs' shows what is under way", err=True)
    for hit in hits:
        place = f"  ({printable(hit.place)})" if hit.place else ""
        click.echo(f"{hit.score:.3f}  {printable(hit.uri)}{place}")
        click.echo(f"       {shorten(printable(hit.text), EXCERPT)}\n")

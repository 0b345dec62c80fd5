"""collections: list, show and drop."""

from __future__ import annotations

import sys

import click

from semantik.cli.output import emit, json_option, moment, number, plural, printable, table, wants_json
from semantik.exceptions import Refused

INDEX = {"none": "none, the search is exact", "building": "HNSW, being built", "ready": "HNSW"}


@click.group(invoke_without_command=True, short_help="List, show or drop collections.")
@click.pass_context
@json_option
def collections(context: click.Context) -> None:
    """List, show or drop collections; without a subcommand, list them."""
    if context.invoked_subcommand is None:
        context.invoke(list_)


@collections.command("list")
@json_option
def list_() -> None:
    """List the collections."""
    from semantik import collections as records
    from semantik.database import connect
    from semantik.settings import load

    settings = load()
    with connect(settings, autocommit=True, application_name="semantik collections") as connection:
        found = records.list(connection)
    if wants_json():
        emit(found)
        return
    if not found:
        click.echo("no collections: semantik submit URI --collection NAME makes one")
        return
    table(
        ["COLLECTION", "DOCUMENTS", "FAILED", "CHUNKS", "MODEL", "MADE"],
        [
            [c.name, number(c.documents), number(c.failed), number(c.chunks), c.model, moment(c.created_at)]
            for c in found
        ],
        right=[1, 2, 3],
    )


@collections.command()
@click.argument("name")
@json_option
def show(name: str) -> None:
    """Show one collection."""
    from semantik import collections as records
    from semantik.database import connect
    from semantik.settings import load

    settings = load()
    with connect(settings, autocommit=True, application_name="semantik collections") as connection:
        found = records.show(connection, name)
    if wants_json():
        emit(found)
        return
    for title, text in (
        ("collection", found.name),
        ("model", f"{found.model}, revision {found.model_revision[:8]}, {found.dim} dimensions"),
        ("chunking", f"{found.chunk_tokens} tokens, {found.chunk_overlap} shared by neighbours"),
        (
            "documents",
            f"{number(found.documents)}, {number(found.failed)} failed, {number(found.stale)} stale",
        ),
        ("chunks", f"{number(found.chunks)}, {plural(found.tokens, 'token')}"),
        ("index", INDEX[found.index_state]),
        ("made", moment(found.created_at)),
    ):
        click.echo(f"{title + ':':<12}{printable(text)}")


@collections.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def drop(name: str, yes: bool) -> None:
    """Drop a collection with its documents, vectors and jobs. The sources stay untouched."""
    from semantik import collections as records
    from semantik.database import connect
    from semantik.settings import load

    settings = load()
    with connect(settings, autocommit=True, application_name="semantik collections") as connection:
        found = records.show(connection, name)
        if not yes:
            if not sys.stdin.isatty():
                raise Refused(f"dropping {name!r} needs a yes: give --yes where no one can be asked")
            question = (
                f"Drop {name} with {plural(found.documents, 'document')} and {plural(found.chunks, 'chunk')}?"
            )
            if not click.confirm(question, err=True):
                raise Refused(f"{name!r} is kept")
        records.drop(connection, name)
    if wants_json():
        emit({"dropped": name, "documents": found.documents, "chunks": found.chunks})
    else:
        click.echo(f"dropped {name}: {plural(found.documents, 'document')}, {plural(found.chunks, 'chunk')}")

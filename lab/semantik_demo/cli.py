"""The steps of the demo, in order, each with its time."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from semantik_demo import corpus, hosts, summary
from semantik_demo.errors import DemoError

COLLECTION = "debian"
QUESTIONS = (
    "How do I set a password for the boot loader?",
    "What should be done about a maintainer who no longer answers?",
    "What does the directory /srv hold?",
)
EXIT_INTERRUPTED = 130
#: What `semantik watch` returns for a job in which single documents failed: the summary counts them.
WITH_ERRORS = 3
SECRETS = hosts.INVENTORY / ".secrets"


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step and, once it is done, its time."""
    print(f"\n== {title}", flush=True)
    begin = time.monotonic()
    yield
    print(f"-- {title}: {time.monotonic() - begin:.1f} s", flush=True)


def up() -> int:
    """Bring everything up, embed the documents, search them."""
    begin = time.monotonic()
    with step("Lab: three booted hosts on this machine"):
        lab = hosts.up()
    with step("Documents: Debian's manuals"):
        folder, held = corpus.provide()
        written = corpus.copy(folder, lab.documents / COLLECTION)
        print(f"{folder} ({'found' if held else 'made'}), {written} files copied to {lab.uri}/{COLLECTION}")
    with step("Cluster: ansible-playbook -i inventories/lab site.yml"):
        hosts.provision()
        hosts.make_account(lab)
    with step(f"Embedding: semantik submit {lab.uri}/{COLLECTION} --collection {COLLECTION} --watch"):
        job = lab.semantik("submit", f"{lab.uri}/{COLLECTION}", "--collection", COLLECTION)["job"]["id"]
        status = lab.show("watch", job)
        if status not in (0, WITH_ERRORS):
            raise DemoError(f"the job ended with status {status} (see above)")
    with step("Searching"):
        for question in QUESTIONS:
            print(f'\nsemantik search {COLLECTION} "{question}"')
            if lab.show("search", COLLECTION, question, "-n", "3") != 0:
                raise DemoError("a search failed (see above)")
    figures = summary.collect(lab, COLLECTION, job)
    summary.save(figures)
    control = lab.host("control")
    print("\n== Summary")
    print("\n".join(summary.lines(figures)))
    print(f"The same figures for programs: {summary.FILE.relative_to(hosts.ROOT)}")
    print(f"Flower:      https://{control['address']}/ (authority: {relative(SECRETS / 'ca' / 'ca.crt')})")
    print(f"             log in with the user:password in {relative(SECRETS / 'flower_basic_auth')}")
    print(
        f"Command:     lab/lab enter {control['name']}, then: runuser -u {hosts.ACCOUNT} -- semantik --help"
    )
    print(f"Your files:  copy them below {lab.documents}, hosts see them in {lab.uri}")
    print("Remove all:  make demo-down")
    print(f"Took {time.monotonic() - begin:.0f} s in all.")
    return 0


def relative(path: object) -> str:
    """Return a path of this repository as the reader types it."""
    return os.path.relpath(str(path), hosts.ROOT)


def down() -> int:
    """Remove the lab and what the demo wrote beside it."""
    if hosts.exists() and subprocess.run([hosts.LAB, "destroy"], check=False).returncode != 0:
        raise DemoError("the lab could not be removed (see above)")
    # These open nothing any more: the hosts that knew them are gone.
    if SECRETS.exists():
        shutil.rmtree(SECRETS)
    summary.FILE.unlink(missing_ok=True)
    print(
        f"Removed the lab, its documents and its secrets. Kept for the next time: {corpus.CACHE.parent} "
        "(packages, base systems, corpus) and build/ (wheelhouse); delete them to have the space back."
    )
    return 0


def check() -> int:
    """Ask every part and every slot of the demo's cluster."""
    return hosts.find().show("check", "--gpu")


def main() -> int:
    """Run one of the demo's commands; every error is one line on stderr."""
    parser = argparse.ArgumentParser(prog="lab/demo", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "check"])
    commands = {"up": up, "down": down, "check": check}
    arguments = parser.parse_args()
    try:
        return commands[arguments.command]()
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; make demo goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED

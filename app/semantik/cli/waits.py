"""How long the stages of the engine waited for each other, in words that say what to make faster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

#: A stage that waited for a smaller share of the run than this is not worth a word.
WORTH_SAYING = 0.1

_NAMED = {
    "forward_in": "the model for chunks",
    "chunk_in": "the tokenizer for texts",
    "chunk_out": "the tokenizer for the model",
    "parse_out": "the parsers for the tokenizer",
    "write": "the model for {target}",
}


def waited(waits: Mapping[str, float], target: str) -> str:
    """Return the stages' waits in one line; `target`: where the rows go, "the disk" for example."""
    named = [(words.format(target=target), waits[stage]) for stage, words in _NAMED.items() if stage in waits]
    return "; ".join(f"{words} {seconds:.1f} s" for words, seconds in named)


def advice(waits: Mapping[str, float], seconds: float) -> Iterator[str]:
    """Yield what to make faster, for a run of `seconds`."""
    least = WORTH_SAYING * max(seconds, 1e-3)
    if waits.get("write", 0) > least:
        yield "slowest: writing; a faster disk helps where the rows go"
    elif waits.get("forward_in", 0) <= least:
        yield "slowest: the model, as it should be; a GPU, more of them or more threads help"
    elif waits.get("chunk_in", 0) > least:
        yield "slowest: parsing; more parsers help where there are cores for them"
    else:
        yield "slowest: the tokenizer, which has one core; larger chunks leave it less to do"

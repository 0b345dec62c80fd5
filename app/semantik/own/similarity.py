"""An example of a task of one's own: how alike are two texts, by the cluster's model?

Loaded where SEMANTIK_IMPORTS has `semantik.own.similarity`; see docs/tasks.md.
"""

from __future__ import annotations

from semantik.celery_app import app
from semantik.exceptions import SemantikError
from semantik.worker import current


@app.task(name="semantik.own.similarity")
def similarity(first: str, second: str) -> float:
    """Return the cosine of the texts' vectors, from -1 to 1."""
    model = current().model
    if model is None:
        raise SemantikError("this worker holds no model: send the task to queue 'query' or 'embed'")
    left, right = model.embed_question(first), model.embed_question(second)
    return float(left @ right / (left @ left * (right @ right)) ** 0.5)

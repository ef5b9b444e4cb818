"""What a batch call gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from millstream.application.views.artifacts import Published
from millstream.application.views.runs import RunResult
from millstream.application.views.tasks import CreatedTask
from millstream.domain.errors import MillstreamError


@dataclass(frozen=True, slots=True)
class Batch:
    """Outcomes of a batch call in request order."""

    results: Sequence[Published | CreatedTask | RunResult | MillstreamError]
    replayed: bool = False

"""What is in some data, what is broken, and what would be done with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from simulacra.data import images, sounds
from simulacra.data.dataset import Dataset
from simulacra.data.open import assembled, read
from simulacra.data.raw import Survey
from simulacra.refusals import Refusal, shown

MOST_NAMED = 20
EVERYTHING = 1 << 60


@dataclass(frozen=True)
class Findings:
    """The survey, the data set as it would be used, or why it would be refused."""

    what: str
    survey: Survey
    data: Dataset | None
    refusal: Refusal | None
    classes: Mapping[str, int] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """For people, one finding a line."""
        survey, count = self.survey, sum(self.survey.sizes.values())
        yield f"{self.what}: {count:,} of kind {survey.kind}"
        if survey.sizes:
            yield f"  sizes       {_counted(survey.sizes)}"
        if survey.modes:
            yield f"  modes       {_counted(survey.modes)}"
        if self.classes:
            yield f"  classes     {_counted(Counter(self.classes))}"
        if survey.ignored:
            yield f"  ignored     {survey.ignored} files of other kinds"
        yield f"  broken      {len(survey.bad)}"
        for name, reason in survey.bad[:MOST_NAMED]:
            yield f"    {shown(name)} {reason}"
        if len(survey.bad) > MOST_NAMED:
            yield f"    and {len(survey.bad) - MOST_NAMED} more"
        for note in survey.notes:
            yield f"  note        {note}"
        if self.data is not None:
            yield from self._use(self.data)
        if self.refusal is not None:
            yield f"  would be refused: {self.refusal.reason}: {self.refusal.way_out}"

    def _use(self, data: Dataset) -> Iterator[str]:
        parts = (len(data.train), len(data.valid), len(data.test))
        yield f"  duplicates  {data.source['duplicates']:,} (they stay in one part)"
        yield f"  taken as    {data.space}{'' if data.condition is None else f', {data.condition}'}"
        yield "  split       {:,} train, {:,} validation, {:,} test".format(*parts)
        yield f"  fingerprint {data.fingerprint[:16]}"
        if self.survey.bad:
            yield f"  needs       --skip-bad {len(self.survey.bad)}"


def check(what: str | Path, *, size: int | None = None, label: str | None = None) -> Findings:
    """Look at all of ``what``; only a path that is not there, or holds nothing, is refused."""
    try:
        raw = read(what, size=size, skip_bad=EVERYTHING, label=label)
    except Refusal as refusal:
        path = Path(what)
        if not path.exists() or refusal.code in ("DATA-012", "DATA-013"):
            raise
        if sounds.is_sounds(path):
            return Findings(str(what), sounds.survey_sounds(path), None, refusal)
        if not images.is_images(path):
            raise
        return Findings(str(what), images.survey_images(path), None, refusal)
    data = assembled(str(what), raw)
    return Findings(str(what), raw.survey, data, None, _classes(data))


def _classes(data: Dataset) -> dict[str, int]:
    if data.labels is None or data.train.conditions is None:
        return {}
    counts = data.train.conditions.bincount(minlength=data.labels.count).tolist()
    return {data.labels.name(label): count for label, count in enumerate(counts)}


def _counted(counter: Counter[str], most: int = 12) -> str:
    told = ", ".join(f"{name}: {count:,}" for name, count in counter.most_common(most))
    return told + (f", and {len(counter) - most} more" if len(counter) > most else "")

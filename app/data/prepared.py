"""The training examples of a job with the counts of how they came about, and how they are kept on the disk by content."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from app.data import array_cache
from app.data.array_cache import Arrays, joined, parted
from app.data.contents import eval_content, train_content
from app.data.decontamination import Overlap, together
from app.data.examples import DataReport, TokenExample
from app.data.stream import Stream
from app.data.suites import scored_tasks, suite_of, trains_on_suite
from app.data.tasks import Item
from app.embedded import cache as embedded
from jobs.config.job import Job
from jobs.errors import ConfigError


@dataclass
class Source:
    """The training examples of one source. `report` and `overlap` count the examples that were read of it, once each."""

    key: str
    examples: Sequence[TokenExample] | Stream
    weight: float | None
    report: DataReport
    overlap: Overlap
    met: int = 0  # of a stream: examples of its first pass


@dataclass
class Prepared:
    sources: list[Source]
    held_out: list[TokenExample]
    shares: list[float] = field(default_factory=list)  # of each source in what is trained on; they sum to 1

    @property
    def streamed(self) -> bool:
        return any(isinstance(one.examples, Stream) for one in self.sources)

    @property
    def examples(self) -> list[TokenExample]:
        """All in memory."""
        return [example for one in self.sources if not isinstance(one.examples, Stream) for example in one.examples]

    def passes(self, epochs: float) -> float:
        """Examples of so many passes. Raises ConfigError where the number of examples is not known."""
        if self.streamed:
            fact = "the number of examples of a streamed source is not known"
            raise ConfigError("train.epochs", fact, "set train.max_steps alone, or take streaming out of data.train")
        return epochs * len(self.examples)

    def counts(self, drawn: Sequence[int] = ()) -> dict[str, Any]:
        """For metrics.json: what was read, dropped and kept, of all sources together and of each. drawn: of each, in training."""
        total: Counter[str] = Counter()
        each = []
        for one, share, number in zip(self.sources, self.shares, drawn or [0] * len(self.sources), strict=True):
            about = {**asdict(one.report), "overlap": one.overlap.report}
            train = one.met if isinstance(one.examples, Stream) else len(one.examples)
            total.update({key: value for key, value in about.items() if isinstance(value, int)}, train=train)
            streamed = {"streamed": True, "passes": one.examples.passes} if isinstance(one.examples, Stream) else {}
            each.append({**about, "train": train, "weight": one.weight, "share": share, "drawn": number, **streamed})
        if len(each) == 1 and not self.streamed:
            return {**about, "train": total["train"], "eval": len(self.held_out)}
        alike = ("source", "format", "template")
        named = {key: ", ".join(dict.fromkeys(str(one[key]) for one in each)) for key in alike}
        return {**named, **total, "overlap": together([one.overlap for one in self.sources]), "eval": len(self.held_out),
                "sources": each}  # fmt: skip


def left_out(report: DataReport, overlap: Overlap) -> dict[str, int]:
    return report.left_out | ({"that share text with evaluation items": overlap.dropped} if overlap.dropped else {})


# ---- kept by content -------------------------------------------------------------------------------------------------


# Of `train`, what decides the examples, beside how many are held out and whether turns must be known. A test reads along.
_DECIDING = {"data", "cut", "max_length", "eval_fraction", "overlap_ngram"}
_SOURCES = array_cache.sources_of("app.data.mixture")  # which reads them, and imports this file


def key_of(job: Job, tokenizer: Any, eval_items: Sequence[Item]) -> str | None:
    """A digest of all that the examples depend on; None for a tokenizer in Python, and for files whose content is not known."""
    definition = array_cache.definition_of(tokenizer)
    stage, train, data = job.stage, job.stage.train, job.profile.data
    assert train is not None
    own = trains_on_suite(stage)
    known = data.eval.path is None or "data.eval" in job.contents if own else (
        all(one.source == "embedded" or key in job.contents for key, one in data.sources.items()))  # fmt: skip
    if definition is None or not known:
        return None
    cut = train.cut == "random" or any(one.format == "text" for one in data.sources.values())
    settings = {"seed": stage.seed if cut else None, "order": stage.order, "shots": stage.shots, "tasks": scored_tasks(stage),
                "held_out": train.held_out, "segment": train.mask == "segment", "train": train.model_dump(include=_DECIDING),
                "suite": suite_of(stage).model_dump(), "data": data.model_dump(mode="json"),
                "contents": dict(job.contents)}  # fmt: skip
    items = [[item.task, item.id, item.question, item.answers] for item in eval_items]
    return array_cache.key_of([
        *_SOURCES.values(),
        json.dumps(settings, sort_keys=True), definition, json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True),
        json.dumps(items), _embedded_content(job, own),
    ])  # fmt: skip


def _embedded_content(job: Job, own: bool) -> bytes:
    """The digests of the embedded files, if any of them is read; they are checked before."""
    data = job.profile.data
    reads = data.eval.path is None if own else any(one.source == "embedded" for one in data.sources.values())
    return (embedded.fetch_datasets() / embedded.MANIFEST).read_bytes() if reads else b""


def lasts(tokenizer: Any) -> bool:
    """Whether the same key gives the same examples tomorrow: some chat templates write the date."""
    return "strftime_now" not in str(getattr(tokenizer, "chat_template", None))


def pack(job: Job, data: Prepared) -> Arrays | None:
    """None for what must not be kept: streams, more than fits, and what was read of files that have changed since their digests
    were taken."""
    all_of_them = [*data.examples, *data.held_out]
    if data.streamed or not array_cache.fits(sum(4 * len(one) + len(one.text) for one in all_of_them)):
        return None
    now = {"data.eval": eval_content(job)} if trains_on_suite(job.stage) else (
        {key: train_content(one) for key, one in job.profile.data.sources.items() if one.path})  # fmt: skip
    if any(job.contents.get(key) != content for key, content in now.items()):
        return None
    counts = [{"key": one.key, "weight": one.weight, "report": asdict(one.report), "train": len(one.examples),
               "examples": one.overlap.examples, "dropped": one.overlap.dropped, "by_item": list(one.overlap.by_item.items())}
              for one in data.sources if not isinstance(one.examples, Stream)]  # fmt: skip
    rest = [[one.key, one.text, one.turns, one.learnt, one.rounds] for one in all_of_them]
    about = {"sources": counts, "shares": data.shares, "ngram": data.sources[0].overlap.n, "examples": rest}
    ids = [ids for one in all_of_them for ids in (one.prompt_ids, one.response_ids)]
    return joined(ids) | {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}


def unpack(eval_items: Sequence[Item], arrays: Arrays) -> Prepared:
    """What was packed. Raises ValueError or KeyError for arrays of something else."""
    about = json.loads(arrays["about"].tobytes())
    ids = iter(parted(arrays))
    found = [TokenExample(next(ids), next(ids), key, text, _spans(turns), _spans(learnt), tuple(rounds))
             for key, text, turns, learnt, rounds in about["examples"]]  # fmt: skip
    examples, sources = iter(found), []
    for one in about["sources"]:
        overlap = Overlap(eval_items, about["ngram"], one["examples"], one["dropped"], Counter(dict(one["by_item"])))
        some = list(islice(examples, one["train"]))
        sources.append(Source(one["key"], some, one["weight"], DataReport(**one["report"]), overlap))
    return Prepared(sources, list(examples), about["shares"])


def _spans(pairs: list[list[int]] | None) -> tuple[tuple[int, int], ...] | None:
    return None if pairs is None else tuple((start, stop) for start, stop in pairs)

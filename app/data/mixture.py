"""What a stage trains on: examples of one or of several sources, and those that are held out. Front door: `prepare`.

Of several sources each place in a step is drawn by itself: source k with a probability in proportion to w_k ** (1 / temperature),
where w_k is its `weight`, or, where none is given, the number of its training examples. With temperature 1 and no weights that is
all examples in one heap; the higher the temperature, the more alike the shares (Arivazhagan et al. 2019, arXiv 1907.05019). A
source that runs out begins again in another order; metrics.json has what was drawn of each. The overlap with evaluation items is
checked for every example of every source. Held out are examples of all sources, drawn by hash from them together.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from app.data import array_cache
from app.data.array_cache import kept
from app.data.decontamination import Guard
from app.data.examples import (
    BATCH,
    DataReport,
    Encoding,
    Seen,
    TokenExample,
    is_held_out,
    load_examples,
    require_some,
    split,
    stream_examples,
    words,
)
from app.data.prepared import Prepared, Source, key_of, lasts, left_out, pack, unpack
from app.data.stream import RECENT, Stream
from app.data.suites import suite_records, trains_on_suite
from app.data.tasks import Item
from app.runtime.progress import Bar, waiting
from jobs.config.job import Job
from jobs.config.profile import TrainData
from jobs.config.schema import Mask, Train
from jobs.errors import DataError

log = logging.getLogger(__name__)
Check = Callable[[Sequence[TokenExample]], object]


_HELD: dict[str, Prepared] = {}  # of this process, by `key_of`; the one used last stands last
MOST_HELD = 4


def prepare(job: Job, tokenizer: Any, eval_items: Sequence[Item], check: Check = len) -> Prepared:
    """The examples of the job's sources: those in memory are read, streams begin.

    A control and its model, or the cells of a campaign, are trained on the same examples: what was read for one job, in this
    process or in another, is not read again for one where nothing that decides the examples differs.

    check: called with examples before they are used; raises for one that the model cannot read.

    Raises:
        DataError: unusable data.
    """
    key = key_of(job, tokenizer, eval_items)
    held = _HELD.pop(key, None) if key else None
    if held is None:
        read = partial(_read, job, tokenizer, eval_items, check)
        path = array_cache.directory() / f"{key}.safetensors"
        held = kept(path, read, partial(pack, job), partial(unpack, eval_items)) if key and lasts(tokenizer) else read()
    for examples in (held.examples, held.held_out):
        check(examples)
    if key and not held.streamed:
        _HELD[key] = held
        while len(_HELD) > MOST_HELD:
            del _HELD[next(iter(_HELD))]
    number = "streamed" if held.streamed else str(len(held.examples))
    dropped = sum((Counter(left_out(one.report, one.overlap)) for one in held.sources), Counter[str]())
    log.info(f"{number} training examples, {len(held.held_out)} held out; dropped: {words(dropped) or 'none'}")
    return held


def _read(job: Job, tokenizer: Any, eval_items: Sequence[Item], check: Check) -> Prepared:
    train = job.stage.train
    assert train is not None
    with waiting("index evaluation items"):
        guard = Guard(eval_items, train.overlap_ngram)
    reader = _Reader(job, train, _encoding(job, tokenizer), guard, check)
    prepared = Prepared([], [])
    sources = _sources(job)
    # Streams come last: they are compared with those in memory.
    for key, source in sorted(sources.items(), key=lambda one: one[1].streaming):
        one, out = (reader.streamed if source.streaming else reader.in_memory)(key, source)
        prepared.sources.append(one)
        prepared.held_out += out
    prepared.sources.sort(key=lambda one: list(sources).index(one.key))
    if not prepared.held_out:
        fact = f"{train.eval_fraction} of these examples leaves the evaluation side empty"
        raise DataError("train.eval_fraction", fact, "change the fraction, or give more examples")
    prepared.held_out = sorted(prepared.held_out, key=lambda e: e.key)[: train.held_out]  # by hash, whatever the order
    # Without a weight a stream is the only source: the schema insists.
    sizes = [1 if isinstance(one.examples, Stream) else len(one.examples) for one in prepared.sources]
    weights = [size if one.weight is None else one.weight for size, one in zip(sizes, prepared.sources, strict=True)]
    powers = [weight ** (1 / job.profile.data.temperature) for weight in weights]
    prepared.shares = [power / sum(powers) for power in powers]
    return prepared


def first_examples(job: Job, tokenizer: Any) -> Iterator[tuple[str, DataReport, list[TokenExample]]]:
    """Of each source its key, and the first examples, without the check for overlap; the report counts what was read for them.

    Raises:
        DataError: unusable data, or none left.
    """
    stage = job.stage
    for key, source in _sources(job).items():
        own = suite_records(stage, job.profile.data.eval, BATCH) if trains_on_suite(stage) else None
        report = DataReport.of(source, "" if own is None else stage.suite)
        found = next(stream_examples(source, _encoding(job, tokenizer), own=own, seen=Seen(), report=report), [])
        require_some(report)
        yield key, report, found


def _sources(job: Job) -> dict[str, TrainData]:
    sources = job.profile.data.sources
    return dict(list(sources.items())[:1]) if trains_on_suite(job.stage) else sources


def _encoding(job: Job, tokenizer: Any) -> Encoding:
    stage, train = job.stage, job.stage.train
    assert train is not None
    return Encoding(tokenizer, train.max_length, stage.seed, stage.order == "repeat", train.cut == "random")


@dataclass
class _Reader:
    """Reads the sources of a job, one after the other; `seen` has what those before have given."""

    job: Job
    train: Train
    encoding: Encoding
    guard: Guard
    check: Check
    seen: Seen = field(default_factory=Seen)

    def in_memory(self, key: str, source: TrainData) -> tuple[Source, list[TokenExample]]:
        stage, train, guard = self.job.stage, self.train, self.guard.fresh()
        own = suite_records(stage, self.job.profile.data.eval, source.limit) if trains_on_suite(stage) else None
        examples, report = load_examples(source, self.encoding, own=own, suite="" if own is None else stage.suite,
                                         seen=self.seen)  # fmt: skip
        require_segmented(report, train.mask, key)
        with waiting("compare with evaluation items"):
            examples = guard.drop(examples)
        one_of_several = "" if key == "data.train" else f"{key}: {report.source}"
        kept, out = split(examples, train.eval_fraction, left_out(report, guard.overlap), one_of_several)
        return Source(key, kept, source.weight, report, guard.overlap), out

    def streamed(self, key: str, source: TrainData) -> tuple[Source, list[TokenExample]]:
        train = self.train
        one = Source(key, [], source.weight, DataReport.of(source), self.guard.fresh().overlap)

        def chunks(report: DataReport, guard: Guard) -> Iterator[list[TokenExample]]:
            for chunk in stream_examples(source, self.encoding, seen=Seen(RECENT, self.seen), report=report):
                require_segmented(report, train.mask, key)
                kept = guard.drop(chunk)
                self.check(kept)
                yield kept

        def read(turn: int) -> Iterator[TokenExample]:
            report, fresh = DataReport.of(source), self.guard.fresh()
            if turn == 0:  # again, where the stream goes back
                one.report, one.overlap, one.met = report, fresh.overlap, 0
            for chunk in chunks(report, fresh):
                for example in chunk:
                    if not is_held_out(example, train.eval_fraction):
                        one.met += turn == 0
                        yield example

        report, out = DataReport.of(source), list[TokenExample]()
        with Bar(total=train.held_out, desc=f"held-out examples of {source.place}", delay=2, leave=False) as bar:
            for chunk in chunks(report, self.guard.fresh()):
                out += [example for example in chunk if is_held_out(example, train.eval_fraction)]
                bar.update(len(out) - bar.n)
                if len(out) >= train.held_out:
                    break
        require_some(report)
        one.examples = Stream(read, f"{self.job.stage.seed}|{key}", source.place)
        return one, out[: train.held_out]


def require_segmented(report: DataReport, mask: Mask, key: str = "data.train") -> None:
    """Raises DataError if under `segment` an answer would lie in a turn that sees itself in both directions."""
    if mask == "segment" and report.unsegmented:
        fact = f"in {report.unsegmented} chats the model's chat template does not show where each turn begins"
        raise DataError(key, fact, "use mask prefix or causal, or chats with one answer each")

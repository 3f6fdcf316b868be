"""Log-likelihoods of continuations under a mask: batched, each prompt run once, logits only where they are needed.

app/scoring/rows.py forms the batches. Large work on a GPU is packed and compiled (app/model/compiled.py); the rest, and all
work on a CPU, is padded rows of similar length, with the attention that the model was loaded with. Apart from rounding, a
request's numbers do not depend on the other requests, so processes can divide the work by item.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from app.attention.backends import NAMES, SHORT, attend
from app.attention.block_mask import TILE
from app.attention.mask import Layout
from app.attention.model_config import head_dims
from app.model import compiled, onednn
from app.model.lm_head import instead_of_logits, only_at
from app.model.load import Loaded
from app.model.products import products_of
from app.scoring.encode import Request
from app.scoring.rows import Batch, ScoringRow, batch_of, packed, padded, rows_of
from jobs.config.schema import LEAKING, Mask
from jobs.errors import ModelError
from jobs.estimate.memory import LOGITS
from jobs.estimate.sizes import LEAST_HEAD, line_tokens

_LOGIT_ROWS = 1024  # rows of the vocabulary-wide matrix turned to float32 at once
# Logits that are made and read before more are made: 16 MB stay in a CPU's cache, and 0.5 GB leave a GPU's memory alone.
_LOGITS = {"cpu": 2**22, "cuda": LOGITS}
_AHEAD = 2  # batches queued on a GPU before we wait for the first result
BATCH_TOKENS = 16384
# Raised whenever a request's numbers change by more than the order of sums. 3: bfloat16 as in app/model/mixed_precision.py.
ARITHMETIC = 3
COMPILING = 12.0  # seconds to compile the layers, on the host of an H200 (docs/log.md)
# Seconds that compiling saves on an H200: per token, and per token and parameter (docs/log.md).
_SAVED_TOKEN, _SAVED_PARAMETER = 2.0e-6, 1.5e-15
_SAVED_FAST = {"float16": 1.2e-6, "bfloat16x3": 2.2e-6}  # per token, of float32 models (app/model/products.py)
_COMPILED_BEFORE = 2.0  # seconds to load the compiler and the kernels of its cache: float32 is scored more than once
_CPU_TOKENS = 1024  # more leave a CPU's cache, and rows of like length are fewer to choose from
_MULTIPLE = {"cuda": 8, "cpu": 1}  # widths of padded rows: GPU kernels want masks aligned to 16 bytes


class Scored(NamedTuple):  # of which a stage makes 50,000 at a time
    """Sum of log-probabilities (nats), tokens scored, and whether greedy decoding would have produced them."""

    logprob: float
    n_tokens: int
    greedy: bool


def require_finite(scored: Iterable[Scored], names: Iterable[str]) -> None:
    """Raises ModelError for the first log-likelihood that is no number: it chooses nothing, and JSON cannot hold it."""
    for one, name in zip(scored, names, strict=True):
        if not math.isfinite(one.logprob):
            raise ModelError(name, f"its log-likelihood is {one.logprob}", "try dtype float32, or another model")


@dataclass
class Count:
    """What a call ran: tokens with and without padding, and the attention implementations."""

    tokens: int = 0
    padded: int = 0
    attentions: set[str] = field(default_factory=set)

    @property
    def attention(self) -> str:
        """The one attention that ran, or all of them."""
        return ", ".join(sorted(self.attentions))


class _Running:
    """A batch queued on the device; `finish` waits for it and returns its results.

    lm_head: the output layer, to compute logits a few rows at a time; None where the model must compute them itself.
    """

    def __init__(self, loaded: Loaded, batch: Batch, lm_head: nn.Linear | None = None) -> None:
        device = loaded.device
        self.batch = batch
        ids, sources, targets = (_sent(t, device) for t in (batch.ids, batch.sources, batch.targets))
        own = batch.where
        doc, branch, pos, block = _sent(torch.stack([own.doc, own.branch, own.pos, own.block]), device)
        where = Layout(doc, branch, pos, block, own.trunks_only)
        # Our mask comes from the layout. Without any attention mask transformers would search the positions for packed
        # documents, which waits for the GPU.
        every = torch.ones_like(ids, dtype=torch.bool)
        makes = only_at(loaded.model, sources) if lm_head is None else _evaluating(lm_head, sources, targets)
        with torch.inference_mode(), attend(where), makes:
            logits = loaded.model(
                input_ids=ids, attention_mask=every, position_ids=where.pos.long(), use_cache=False
            ).logits[0]
            # (2, n): log-probabilities, and 1 where another token is likelier
            self._found = logits if lm_head is not None else torch.cat(
                [_evaluated(*part) for part in zip(logits.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS), strict=True)], dim=1
            )  # fmt: skip
        self._ready: torch.cuda.Event | None = None
        if device.type == "cuda":
            pinned = torch.empty_like(self._found, device="cpu", pin_memory=True)
            self._found = pinned.copy_(self._found, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def finish(self) -> Iterable[tuple[int, Scored]]:
        """(index of the request, its result), in any order."""
        if self._ready is not None:
            self._ready.synchronize()
        sizes = np.array(self.batch.sizes)
        some = sizes > 0  # `reduceat` returns the next element for an empty slice
        sums = np.zeros((2, len(sizes)))
        # Each request is summed by itself: with differences of one running sum, a value that is not finite would spread.
        sums[:, some] = np.add.reduceat(self._found.double().numpy(), (sizes.cumsum() - sizes)[some], axis=1)
        found = map(Scored, sums[0].tolist(), self.batch.sizes, (sums[1] == 0).tolist())
        return zip(self.batch.requests, found, strict=True)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    # From pinned memory, so that the host does not wait for work that is queued on the GPU.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _evaluating(lm_head: nn.Linear, sources: Tensor, targets: Tensor) -> AbstractContextManager[None]:
    """Inside, the model returns `_evaluated` of the states at `sources`, (1, 2, n), and never holds all their logits."""

    def compute(states: Tensor) -> Tensor:
        rows = states.flatten(0, 1).index_select(0, sources)
        size = max(1, _LOGITS[states.device.type] // lm_head.out_features)
        parts = zip(rows.split(size), targets.split(size), strict=True)
        return torch.cat([_evaluated(type(lm_head).forward(lm_head, some), want) for some, want in parts], dim=1)[None]

    return instead_of_logits(lm_head, compute)


def _evaluated(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target, and 1 where it is not the likeliest token: (2, n) float32.

    log_softmax in float32, as in the harness, to agree with it to the last digit. On CPUs torch's is about 1e-5 nats a
    token too high at this vocabulary (docs/log.md); its logsumexp is not.
    """
    logits = logits.float()
    picked = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    return torch.stack([picked, (logits.argmax(1) != targets).float()])


def _budget(loaded: Loaded, batch_tokens: int | None) -> int:
    budget = BATCH_TOKENS if batch_tokens is None else batch_tokens
    return min(budget, _CPU_TOKENS) if loaded.device.type == "cpu" else budget


def tokens_of(loaded: Loaded, requests: Sequence[Request], mask: Mask, batch_tokens: int | None) -> int:
    """Tokens of the rows that `loglikelihood` makes of `requests`."""
    return sum(map(len, _rows(loaded, requests, mask, _budget(loaded, batch_tokens))))


def _rows(loaded: Loaded, requests: Sequence[Request], mask: Mask, budget: int) -> list[ScoringRow]:
    return rows_of(requests, mask not in LEAKING, budget, loaded.longest_short)


def _plan(
    loaded: Loaded, rows: Sequence[ScoringRow], budget: int, line: int, work: int
) -> Iterator[tuple[list[list[ScoringRow]], int, bool]]:
    """(lines of rows, width, whether they are packed and compiled) of each batch, of `budget` tokens; packed ones of `line`."""
    width = max(line // TILE, 1) * TILE  # whole tiles of FlexAttention's, within the budget where it holds one
    fits = [row for row in rows if row.size <= width] if compiling_pays(loaded, work) else []
    multiple = _MULTIPLE[loaded.device.type]
    rest = rows[: len(rows) - len(fits)]  # the longest stand first
    # Rows of one arithmetic together: neither the dtype of a row's attention nor its position encoding may depend on its
    # neighbours (app/attention/backends.py, model_config.py).
    for some in _alike(rest, lambda row: (row.size > SHORT, row.is_long)):
        for batch in padded(some, budget):
            yield [[row] for row in batch], -(-len(batch[0]) // multiple) * multiple, False
    for some in _alike(fits, lambda row: row.is_long):
        for full in packed(some, width):
            yield [full], width, True


def _alike(rows: Sequence[ScoringRow], kind: Callable[[ScoringRow], Any]) -> list[list[ScoringRow]]:
    """Rows of each kind, in their order."""
    groups: dict[Any, list[ScoringRow]] = {}
    for row in rows:
        groups.setdefault(kind(row), []).append(row)
    return list(groups.values())


def loglikelihood(loaded: Loaded, requests: Sequence[Request], mask: Mask, *, batch_tokens: int | None = None,
                  progress: Callable[[int, int], None] | None = None, count: Count | None = None,
                  work: int | None = None) -> list[Scored]:  # fmt: skip
    """Score every request under `mask`; results in the order of `requests`.

    Args:
        mask: causal, prefix (the context is the prefix), segment (its one turn) or bidirectional (leaks).
        batch_tokens: tokens a batch with their padding, at most; None: BATCH_TOKENS. A CPU takes fewer.
        progress: called after each batch with tokens run so far and in all. Tokens, not requests: the longest come first.
        count: filled with what was run.
        work: `tokens_of` all requests, where these are one process's share: padded or packed must not depend on the
            number of processes.

    Raises:
        ModelError: the compiled attention does not obey the mask.
    """
    budget = _budget(loaded, batch_tokens)
    count = count or Count()
    results: list[Scored | None] = [None] * len(requests)
    rows = _rows(loaded, requests, mask, budget)
    done, total = 0, sum(row.size for row in rows)
    lm_head = loaded.lm_head
    running: deque[_Running] = deque()

    def finish_first() -> None:
        nonlocal done
        first = running.popleft()
        for i, scored in first.finish():
            results[i] = scored
        done += first.batch.tokens
        count.tokens += first.batch.tokens
        count.padded += first.batch.ids.numel()
        if progress is not None:
            progress(done, total)

    work = total if work is None else work
    line = line_tokens(budget, loaded.model.num_parameters())
    if lm_head is None or work < line:  # all logits of a line would be made at once, or most of it would be filler
        line = budget
    for lines, width, is_packed in _plan(loaded, rows, budget, line, work):
        batch = batch_of(lines, requests, mask, width, filler=TILE if is_packed else None)
        count.attentions.add(compiled.ATTENTION if is_packed else loaded.attention)
        if is_packed:
            compiled.require_scored(loaded, mask, width)
        with compiled.layers(loaded.model) if is_packed else onednn.on_cpu(loaded.device):
            running.append(_Running(loaded, batch, lm_head))
        if len(running) > (_AHEAD if loaded.device.type == "cuda" else 0):
            finish_first()
    while running:
        finish_first()
    assert all(result is not None for result in results)
    return [result for result in results if result is not None]


def compiling_pays(loaded: Loaded, tokens: int) -> bool:
    """Whether to pack and compile rows of `tokens` in all.

    Always if the profile asks for FlexAttention on a GPU, which would otherwise compile each padded shape. With
    `attention: auto`, if it saves more time than it takes; in float32 it saves none, unless its products are split. The
    decision depends on the work alone, so that a repeated run gives the same numbers to the last digit.
    """
    model = loaded.model
    if loaded.device.type != "cuda" or min(head_dims(model)) < LEAST_HEAD or not compiled.decoder_layers(model):
        return False
    if not loaded.any_attention or (model.dtype == torch.float32 and products_of(model) is None):
        return loaded.attention == NAMES["flex_attention"]
    if (kind := products_of(model)) is not None:
        return tokens * _SAVED_FAST[kind] > _COMPILED_BEFORE
    return tokens * (_SAVED_TOKEN + _SAVED_PARAMETER * model.num_parameters()) > COMPILING

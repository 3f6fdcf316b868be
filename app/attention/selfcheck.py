"""Does a loaded model really obey a mask? Perturb a token, see which logits move, compare with the predicate.

Run on every model at the start of every run (a few dozen short rows), because a mask that is silently ignored looks
exactly like a result. The checks test the model as loaded: its attention implementation, its windows, its cache.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.attention.backends import attend, evaluating, observing
from app.attention.layers import attention_modules, sees_both_ways
from app.attention.mask import PATTERNS, Document, Layout, Span, layout
from app.attention.model_config import layer_types, longest_short_text, setting, window_of
from jobs.config.schema import LEAKING, Mask
from jobs.errors import ModelError

LENGTH, PREFIX = 12, 6
TURNS = ((0, 3), (4, PREFIX))  # of the prompt: two turns with an answer of one token between them
LATER = (9, 11)  # a further turn, behind an answer
ONE = Document(PREFIX, LENGTH, turns=TURNS)
# Of the logits' spread, allowed between two layouts, which sum in another order. In float32 SmolLM2-135M has less than 1e-4 on
# most processors and 1.1e-4 under bidirectional on Intel's Emerald Rapids; between the logits of two masks there is about 1.
FLOAT_SHARE, HALF_SHARE = 1e-3, 0.2


@dataclass(frozen=True)
class Finding:
    """One law on one model: what was checked, whether it holds, the largest deviation seen."""

    law: str
    mask: Mask
    holds: bool
    detail: str


def _run(model: PreTrainedModel, ids: Tensor, where: Layout, **kwargs: Any) -> Any:
    where = where.to(model.device)
    with torch.no_grad(), attend(where):
        return model(input_ids=ids.to(model.device), position_ids=where.pos.long(), use_cache=False, **kwargs)


def tolerance(logits: Tensor) -> float:
    """Largest difference that counts as equal, for rows of one shape: a share of the logits' spread, by their dtype.

    Matmuls rounded to bfloat16 do not matter here: both rows are rounded alike.
    """
    share = 1e-4 if logits.dtype == torch.float32 else 5e-2
    return share * max(float(logits.float().std()), 1e-6)


def expected_dependence(model: PreTrainedModel, where: Layout) -> tuple[Tensor, Tensor]:
    """Allowed and required dependencies of logits on tokens: two bool (query, key) for the one row of `where`.

    Allowed: a path exists through the layers' masks, whose windows differ. Required: one layer's mask has it directly.
    """
    size = where.shape[1]
    may, must = torch.eye(size, dtype=torch.bool), torch.eye(size, dtype=torch.bool)
    kinds = layer_types(model)
    causal = {module.layer_idx for module in attention_modules(model) if not sees_both_ways(module)}
    for index, kind in enumerate(kinds):
        seen = where.causal() if index in causal else where
        direct = seen.dense(window=window_of(model, kind))[0, 0].cpu() | torch.eye(size, dtype=torch.bool)
        must |= direct
        may = (direct.float() @ may.float()) > 0
    return may, must


def measured_dependence(model: PreTrainedModel, where: Layout, ids: Tensor) -> Tensor:
    """Bool (query, key): logit of `query` moved when token `key` was replaced. `ids`: (1, length)."""
    size = ids.shape[1]
    vocab = setting(model, "vocab_size")
    rows = ids.repeat(size + 1, 1)
    for j in range(size):  # row 0 stays as it was
        rows[j + 1, j] = (rows[j + 1, j] + vocab // 2) % vocab
    logits = _run(model, rows, where.repeat_rows(size + 1)).logits
    moved = (logits[1:] - logits[:1]).abs_().amax(-1).float()  # (key, query)
    return (moved > tolerance(logits)).T.cpu()


def _delivered(model: PreTrainedModel, where: Layout, ids: Tensor) -> dict[str, bool]:
    """Per layer type: whether the mask that its attention is computed under equals the predicate."""
    kinds = layer_types(model)
    good: dict[str, list[bool]] = {kind: [] for kind in kinds}

    def check(module: Any, mask: Any) -> None:
        kind = kinds[module.layer_idx]
        seen_by = where if sees_both_ways(module) else where.causal()
        want = seen_by.dense(window=window_of(model, kind)).to(model.device)
        if mask is None:
            return good[kind].append(False)
        if hasattr(mask, "mask_mod"):  # FlexAttention
            i = torch.arange(where.shape[1], device=model.device)
            zero = torch.zeros((), dtype=torch.long, device=model.device)
            mask = mask.mask_mod(zero, zero, i[:, None], i[None, :])[None, None]
        seen = mask if mask.dtype == torch.bool else mask == 0
        good[kind].append(bool((seen == want).all()))

    with observing(check):
        _run(model, ids, where)
    return {kind: len(seen) >= kinds.count(kind) and all(seen) for kind, seen in good.items()}


def check_dependence(model: PreTrainedModel, masks: Iterable[Mask]) -> list[Finding]:
    """Laws 1 and 2 under each mask: no forbidden dependency, no missing one."""
    findings = []
    ids = torch.randint(3, setting(model, "vocab_size"), (1, LENGTH), generator=torch.Generator().manual_seed(0))
    for name in masks:
        document = Document(PREFIX, LENGTH, turns=(*TURNS, LATER))
        where = layout([[document]], name)
        for kind, ok in _delivered(model, where, ids).items():
            findings.append(Finding(f"mask reaches {kind} layers", name, ok, "" if ok else "another mask arrived"))
        may, must = expected_dependence(model, where)
        seen = measured_dependence(model, where, ids)
        extra, missing = int((seen & ~may).sum()), int((must & ~seen).sum())
        later = ("answer tokens see themselves (leaks, as this mask is defined)" if name in LEAKING
                 else "no response logit depends on a later token")  # fmt: skip
        detail = f"{extra} dependencies too many, {missing} missing, of {LENGTH * LENGTH}"
        findings.append(Finding(later, name, extra == 0 and missing == 0, detail))
        last = next((stop for _, stop in PATTERNS[name](document)), PREFIX) - 1  # of the first block
        ahead, wanted = bool(seen[0, last]), bool(may[0, last])
        law = "early prompt tokens see later ones" if wanted else "early prompt tokens do not see later ones"
        findings.append(Finding(law, name, ahead == wanted, ""))
    return findings


def require_decoder(model: PreTrainedModel, where: str) -> None:
    """Refuse an encoder. Under our masks it would obey every law, and its scores would still mean nothing.

    Raises:
        ModelError: without a mask of ours, a logit depends on a later token, or the model needs more than token ids.
    """
    ids = torch.tensor([[3, 4, 5], [3, 4, 6]], device=model.device)
    try:
        with evaluating(model), torch.no_grad(), attend(None):
            # One pass each: two rows of one batch round differently, by as much as the tolerance (SmolLM2-135M on a CPU).
            logits = torch.cat([model(input_ids=row[None], use_cache=False).logits[:, :2] for row in ids])
    except ModelError:
        raise
    except (AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(where, f"{type(model).__name__} does not run on plain text: {' '.join(str(error).split())[:200]}",
                         "use a decoder-only model of text") from error  # fmt: skip
    if float((logits[0] - logits[1]).abs().max()) > tolerance(logits):
        raise ModelError(where, f"{type(model).__name__} is an encoder: it was trained to read its text in both directions",
                         "use a decoder-only model")  # fmt: skip


def check_company(model: PreTrainedModel) -> list[Finding]:
    """A score must not depend on its neighbours in the batch; some position encodings depend on the largest position.

    The neighbour has two tokens at the last positions that may share a batch with a short text.
    """
    longest = longest_short_text(model) or setting(model, "max_position_embeddings") or LENGTH
    if longest < LENGTH:
        return []
    ids = torch.randint(3, setting(model, "vocab_size"), (2, LENGTH), generator=torch.Generator().manual_seed(3))
    one = layout([[Document(PREFIX, LENGTH)]], "causal")
    short, both = one.repeat_rows(2), one.repeat_rows(2)
    both.pos[1] += longest - LENGTH
    # Two rows each time: a row alone rounds differently, by as much as the tolerance.
    alone, beside = _run(model, ids, short).logits[0], _run(model, ids, both).logits[0]
    return [_close(model, f"a score does not depend on its company, up to {longest} tokens", "causal", beside, alone)]


def _close(model: PreTrainedModel, law: str, mask: Mask, left: Tensor, right: Tensor) -> Finding:
    """Whether the logits of two layouts are equal, within the precision of the weights.

    In float32 each logit is compared. bfloat16 weights round differently in each layout, whatever the dtype of the logits:
    after thirty layers the worst of a million logits differs by up to 0.3 of their spread. There the root mean square is
    compared: at most 0.06 on SmolLM2-135M on a CPU, and at least 1.07 between the logits of two different masks.
    """
    gap = left.float() - right.float()
    if model.dtype == torch.float32:
        share, found, what = FLOAT_SHARE, float(gap.abs().max()), "largest"
    else:
        share, found, what = HALF_SHARE, float(gap.square().mean().sqrt()), "root mean square"
    limit = share * max(float(right.float().std()), 1e-6)
    return Finding(law, mask, found <= limit, f"{what} difference {found:.1e}, allowed {limit:.1e}")


def check_equivalences(model: PreTrainedModel, masks: Iterable[Mask]) -> list[Finding]:
    """Laws 3 and 4: the same logits in every layout of the work."""
    findings = []
    vocab = setting(model, "vocab_size")
    ids = torch.randint(3, vocab, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    other = torch.randint(3, vocab, (1, LENGTH - 3), generator=torch.Generator().manual_seed(2))
    short = Document(PREFIX - 2, LENGTH - 3)
    for name in masks:

        def same(law: str, left: Tensor, right: Tensor, name: Mask = name) -> None:
            findings.append(_close(model, law, name, left, right))

        def logits(*documents: Document, tokens: Tensor = ids, under: Mask = name, **how: Any) -> Tensor:
            return _run(model, tokens, layout([documents], under, **how)).logits

        alone = logits(ONE)
        same("packed equals separate", logits(ONE, short, tokens=torch.cat([ids, other], 1))[:, :LENGTH], alone)
        pad = torch.zeros(1, 5, dtype=ids.dtype)
        for side, row, real in (("right", (ids, pad), slice(0, LENGTH)), ("left", (pad, ids), slice(5, None))):
            got = logits(ONE, tokens=torch.cat(row, 1), length=LENGTH + 5, side=side)[:, real]
            same(f"{side}-padded equals unpadded", got, alone)
        if name in LEAKING:
            continue
        tail = ids[:, PREFIX:]
        tree = Document(PREFIX, PREFIX, (LENGTH - PREFIX, LENGTH - PREFIX), TURNS)
        branched = logits(tree, tokens=torch.cat([ids[:, :PREFIX], tail.flip(1), tail], 1))
        same("a shared prompt's branches equal one at a time", branched[:, LENGTH:], alone[:, PREFIX:])
        same("prefill, then cached decoding, equals one pass", _decode(model, ids, name), alone)
        if name == "prefix":
            same("a prefix of one token is causal", logits(Document(1, LENGTH)), logits(ONE, under="causal"))
        if name == "segment":
            one_turn = Document(PREFIX, LENGTH)
            same("a prompt of one turn is prefix", logits(one_turn), logits(one_turn, under="prefix"))
            further = _decode(model, ids, name, LATER)
            whole = logits(replace(ONE, turns=(*TURNS, LATER)))
            same("a further turn on the cache of the earlier ones equals one pass", further, whole)
    return findings


def _decode(model: PreTrainedModel, ids: Tensor, mask: Mask, later: Span | None = None) -> Tensor:
    """Logits (1, length, vocab) of a prefill of the prompt and then one token at a time, but the turn `later` in one pass."""
    ids = ids.to(model.device)
    at, cache, parts = 0, None, []
    while at < ids.shape[1]:
        stop = PREFIX if not at else later[1] if later and at == later[0] else at + 1
        if stop - at > 1:  # what is known when a turn is read
            turns = TURNS if not at or later is None else (*TURNS, later)
            where = layout([[Document(PREFIX, stop, turns=turns)]], mask).to(model.device)
        with torch.no_grad(), attend(where):
            position = torch.arange(at, stop, device=model.device)[None]
            out = model(input_ids=ids[:, at:stop], position_ids=position, past_key_values=cache, use_cache=True)
        at, cache = stop, out.past_key_values
        parts.append(out.logits)
    return torch.cat(parts, dim=1)


def require(model: PreTrainedModel, masks: Iterable[Mask], where: str) -> list[Finding]:
    """The self-check at the start of a run.

    Raises:
        ModelError: a law of a mask in use does not hold on this model.
    """
    with evaluating(model):
        findings = [*check_dependence(model, masks), *check_company(model)]
    for finding in findings:
        if not finding.holds:
            raise ModelError(where, f"under {finding.mask}, the law {finding.law!r} does not hold: {finding.detail}",
                             "its numbers would mean nothing; see python -m app probe")  # fmt: skip
    return findings

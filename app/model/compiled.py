"""The fast path of long scoring on a GPU: compiled decoder layers with FlexAttention, over packed lines of one length.

One layer is compiled and serves all layers of its kind: that takes seconds, where the whole model would take a minute.
The compiled layer is in place only inside `layers`: what else runs on the model (the self-check, generation, short work)
comes in ever new shapes, each of which would be compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from app.attention import selfcheck
from app.attention.backends import NAMES, attend, text_config
from app.attention.block_mask import TILE
from app.attention.mask import PATTERNS, Document, layout
from app.model.lm_head import instead_of_logits
from app.model.load import Loaded
from jobs.config.schema import Mask
from jobs.errors import ModelError
from jobs.estimate.memory import LEAST_HEAD

ATTENTION = f"{NAMES['flex_attention']}, packed and compiled"
SIZE, PREFIX = 10, 5  # of a document of the self-check: one for each of its tokens, and two more, fit into a tile
_checked: WeakKeyDictionary[nn.Module, set[tuple[Mask, int]]] = WeakKeyDictionary()
_compiled: WeakKeyDictionary[nn.Module, list[Callable[..., Any] | None]] = WeakKeyDictionary()


def decoder_layers(model: Any) -> list[nn.Module]:
    """The model's decoder layers, first to last; empty if they are not where transformers keeps them."""
    layers = getattr(model.get_decoder(), "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


@contextmanager
def layers(model: Any, backend: str = "inductor") -> Iterator[None]:
    """Inside, the model's layers run compiled and with FlexAttention, whatever it was loaded with."""
    config, own = text_config(model), decoder_layers(model)
    attention = config._attn_implementation
    if model not in _compiled:
        for layer in own:
            layer.compile(backend=backend, dynamic=False)
        _compiled[model] = [layer._compiled_call_impl for layer in own]
    config._attn_implementation = NAMES["flex_attention"]
    for layer, call in zip(own, _compiled[model], strict=True):
        layer._compiled_call_impl = call
    try:
        yield
    finally:
        config._attn_implementation = attention
        for layer in own:
            layer._compiled_call_impl = None


# ---- the self-check, on the attention that then runs -----------------------------------------------------------------


def require_scored(loaded: Loaded, mask: Mask, width: int) -> None:
    """`require_dependence` on the layers that score lines of `width`, once a model and mask.

    The self-check at the start of a run knows nothing of them: it runs on the attention that the model was loaded with.
    """
    done = _checked.setdefault(loaded.model, set())
    if (mask, width) not in done:
        with layers(loaded.model):
            require_dependence(loaded.model, [mask], loaded.origin, width,
                               branches=PATTERNS[mask].shares_prompt, mode=torch.inference_mode)  # fmt: skip
        done.add((mask, width))


def require_dependence(model: Any, masks: Iterable[Mask], where: str, width: int, *, branches: bool = False,
                       mode: Callable[[], AbstractContextManager[Any]] = torch.no_grad) -> None:  # fmt: skip
    """Laws 1 and 2, and that documents of one line are blind to each other, in two passes of one line a mask.

    The line, the kind of its documents and `mode` are those of the work to come, so that nothing is compiled for this alone.

    Raises:
        ModelError: a token depends on one that it may not see, or does not depend on one that it must.
    """
    training = model.training
    model.eval()
    try:
        for mask in masks:
            extra, missing = _wrong(model, mask, width, branches, mode)
            if extra or missing:
                fact = f"{extra} dependencies too many, {missing} missing"
                used = text_config(model)._attn_implementation
                raise ModelError(where, f"under {mask}, {used} as compiled does not obey the mask: {fact}",
                                 "its numbers would mean nothing; set model.attention: sdpa")  # fmt: skip
    finally:
        model.train(training)


def _wrong(model: Any, mask: Mask, width: int, branches: bool,
           mode: Callable[[], AbstractContextManager[Any]]) -> tuple[int, int]:  # fmt: skip
    """Dependencies too many and missing. Of the second pass, token j of document j is another than of the first.

    One document before all of them and one behind stay as they are: where everything may depend on everything within a
    document, only they show that nothing does on another document.
    States are compared at the same places of the same line: what may not depend is the same to the last bit, in bfloat16
    too, so that whatever moves at all counts as a dependence that had to be there.
    """
    document = Document(PREFIX, PREFIX, (SIZE - PREFIX,)) if branches else Document(PREFIX, SIZE)
    vocab = text_config(model).vocab_size
    ids = torch.randint(3, vocab, (SIZE + 2, SIZE), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[1:-1] += torch.eye(SIZE, dtype=ids.dtype) * (vocab // 2)
    before, after = (_states(model, tokens, document, mask, width, mode) for tokens in (ids, changed % vocab))
    moves = (after.float() - before.float()).abs().amax(-1).view(SIZE + 2, SIZE).cpu()
    moved, apart = moves[1:-1].T, moves[[0, -1]]  # (query, key)
    may, must = selfcheck.expected_dependence(model, layout([[document]], mask))
    limit = selfcheck.tolerance(before)
    extra = int((~(moved <= limit) & ~may).sum()) + int((~(apart <= limit)).sum())  # NaN is one too many
    return extra, int((must & ~(moved > 0)).sum())


def _states(model: Any, tokens: Tensor, document: Document, mask: Mask, width: int,
            mode: Callable[[], AbstractContextManager[Any]]) -> Tensor:  # fmt: skip
    """What the output layer is given at the documents' tokens, (tokens, hidden): logits of a whole line are many."""
    spare = width - tokens.numel()  # filled with short documents: FlexAttention would compute padding against padding
    fillers = [Document(0, min(TILE, spare - i)) for i in range(0, spare, TILE)]
    where = layout([[document] * len(tokens) + fillers], mask, length=width, device=model.device)
    ids = nn.functional.pad(tokens.reshape(1, -1), (0, spare)).to(model.device)
    with mode(), attend(where), instead_of_logits(model.get_output_embeddings(), lambda hidden: hidden):
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool),
                       position_ids=where.pos.long(), use_cache=False).logits  # fmt: skip
    found: Tensor = states[0, : tokens.numel()]
    return found


def suits(loaded: Loaded) -> bool:
    """Whether to train with FlexAttention and compiled layers: on a GPU, asked for or left to us."""
    wanted = loaded.attention == NAMES["flex_attention"]
    if loaded.device.type != "cuda" or not (wanted or loaded.any_attention):
        return False
    config = text_config(loaded.model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    drops = getattr(config, "attention_dropout", 0.0) or 0.0
    # Its kernels know no dropout.
    return wanted or (head_dim >= LEAST_HEAD and drops == 0.0 and bool(decoder_layers(loaded.model)))


def speed_up(model: Any, backend: str = "inductor") -> None:
    """Have the model use FlexAttention and compiled layers from now on. Its parameters and their names stay.

    A deep copy of the model made afterwards would run this one's layers: copy before.
    """
    text_config(model)._attn_implementation = NAMES["flex_attention"]
    # Two lengths that happen to be equal in the first row (its tiles, a head) are not taken for one: every row that
    # broke such an equality would be compiled anew.
    torch.fx.experimental._config.use_duck_shape = False
    # Under DDP the compiler would cut each layer into one graph a matrix, for an overlap that layer by layer is there anyway.
    torch._dynamo.config.optimize_ddp = False
    for layer in decoder_layers(model):
        # Its forward pass, not the call around it: hooks there (FSDP's gather and free weights) are not the compiler's.
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True)

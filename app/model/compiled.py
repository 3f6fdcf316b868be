"""The fast path of long scoring on a GPU: compiled decoder layers with FlexAttention, over packed lines of one length.

One layer is compiled and serves all layers of its kind: that takes seconds, where the whole model would take a minute.
The compiled layers are used only inside `layers`: the self-check, generation and short work have many different shapes, and
each would be compiled anew.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit

from app.attention import selfcheck
from app.attention.backends import NAMES, attend, evaluating
from app.attention.block_mask import TILE
from app.attention.mask import Document, layout
from app.attention.model_config import head_dims, setting, text_config, values
from app.model.lm_head import instead_of_logits
from app.model.load import Loaded
from app.model.products import Products, products_of
from jobs.config.schema import LEAKING, Mask
from jobs.errors import ModelError
from jobs.estimate.sizes import LEAST_HEAD

ATTENTION = f"{NAMES['flex_attention']}, packed and compiled"
SIZE, PREFIX = 10, 5  # Self-check documents have 10 tokens; 10 perturbed copies and 2 unperturbed ones fit one tile.
TURNS = ((0, 2), (3, PREFIX))
# Of a layer that a process compiles: widths, arithmetics, masks by kind, with and without gradients, of all stages and of all
# runs of a campaign. torch's own limit is 8; what compiles a variant for every step meets this one within minutes.
VARIANTS = 64
_checked: WeakKeyDictionary[nn.Module, set[tuple[Mask, int, Products | None]]] = WeakKeyDictionary()
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
        with always_compiled(model):
            yield
    finally:
        config._attn_implementation = attention
        for layer in own:
            layer._compiled_call_impl = None


@contextmanager
def always_compiled(model: Any) -> Iterator[None]:
    """Inside, what is compiled never runs uncompiled: torch would only warn, and be many times slower.

    Raises:
        ModelError: more than VARIANTS of one function.
    """
    try:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS, fail_on_recompile_limit_hit=True):
            yield
    except FailOnRecompileLimitHit as error:
        fact = (
            f"torch compiled {VARIANTS} variants of a function in this process, and would run the next one uncompiled"
        )
        raise ModelError(type(model).__name__, fact, "start it again: a new process goes on with --continue") from error


# ---- the self-check, on the attention that then runs -----------------------------------------------------------------


def require_scored(loaded: Loaded, mask: Mask, width: int) -> None:
    """`require_dependence` on the compiled layers for lines of `width`, once a model, arithmetic and mask.

    The self-check at the start of a run does not cover them: it runs on the attention that the model was loaded with.
    """
    done, check = _checked.setdefault(loaded.model, set()), (mask, width, products_of(loaded.model))
    if check not in done:
        with layers(loaded.model):
            require_dependence(loaded.model, [mask], loaded.origin, width,
                               branches=mask not in LEAKING, mode=torch.inference_mode)  # fmt: skip
        done.add(check)


def require_dependence(model: Any, masks: Iterable[Mask], where: str, width: int, *, branches: bool = False,
                       mode: Callable[[], AbstractContextManager[Any]] = torch.no_grad) -> None:  # fmt: skip
    """Laws 1 and 2, and that documents of one line do not see each other, in two passes of one line a mask.

    Line, kind of documents and `mode` are those of the later work, so that nothing is compiled for this check alone.

    Raises:
        ModelError: a forbidden dependency between two tokens, or a missing one.
    """
    with evaluating(model):
        for mask in masks:
            extra, missing = _wrong(model, mask, width, branches, mode)
            if extra or missing:
                fact = f"{extra} dependencies too many, {missing} missing"
                used = text_config(model)._attn_implementation
                raise ModelError(where, f"under {mask}, {used} as compiled does not obey the mask: {fact}",
                                 "its numbers would mean nothing; set model.attention: sdpa")  # fmt: skip


def _wrong(model: Any, mask: Mask, width: int, branches: bool,
           mode: Callable[[], AbstractContextManager[Any]]) -> tuple[int, int]:  # fmt: skip
    """Counts forbidden and missing dependencies. The second pass changes token j in document j.

    The first and the last document are unchanged: under a mask that allows every dependency within a document, only they
    show a dependency on another document.
    States are compared at the same places of the same line. Positions that must not depend on each other are bit-identical,
    in bfloat16 too, so any change is a dependency.
    """
    trunk, later = (PREFIX, ()) if branches else (SIZE, ((7, 9),))
    document = Document(PREFIX, trunk, (SIZE - PREFIX,) if branches else (), (*TURNS, *later))
    vocab = setting(model, "vocab_size")
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
    """Input of the output layer at the documents' tokens, (tokens, hidden): logits of a whole line would be too large."""
    spare = width - tokens.numel()  # filled with short documents: FlexAttention would compute padding against padding
    fillers = [Document(0, min(TILE, spare - i)) for i in range(0, spare, TILE)]
    where = layout([[document] * len(tokens) + fillers], mask, length=width, device=model.device)
    ids = nn.functional.pad(tokens.reshape(1, -1), (0, spare)).to(model.device)
    with mode(), attend(where), instead_of_logits(model.get_output_embeddings(), lambda hidden: hidden):
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool),
                       position_ids=where.pos.long(), use_cache=False).logits  # fmt: skip
    return states[0, : tokens.numel()]


def suits(loaded: Loaded) -> bool:
    """Whether to train with FlexAttention and compiled layers: on a GPU, if asked for or with `attention: auto`."""
    wanted = loaded.attention == NAMES["flex_attention"]
    if loaded.device.type != "cuda" or not (wanted or loaded.any_attention):
        return False
    smallest, drops = min(head_dims(loaded.model)), max(values(loaded.model, "attention_dropout", 0.0))
    # Its kernels have no dropout.
    return wanted or (smallest >= LEAST_HEAD and drops == 0.0 and bool(decoder_layers(loaded.model)))


def speed_up(model: Any, backend: str = "inductor") -> None:
    """Switch the model to FlexAttention and compiled layers for good. Parameters and their names stay.

    A deep copy made afterwards would run the original's layers: copy first.
    """
    text_config(model)._attn_implementation = NAMES["flex_attention"]
    # Without this, torch treats two sizes that are equal in the first row as one size for ever, and a row in which they
    # differ is compiled anew.
    torch.fx.experimental._config.use_duck_shape = False
    # An adapter's scale and its dropout's rate would become inputs, computed with on the CPU: a C++ compiler runs for 40 s.
    torch._dynamo.config.specialize_float = True
    # Under DDP the compiler would cut each layer into one graph a matrix, to overlap communication, which happens anyway.
    torch._dynamo.config.optimize_ddp = False
    # It merges a norm's two reductions for rows from a length on (5 Mi numbers by the model's width), and compiles the backward
    # pass anew for shorter ones: 8 s with a 3B model, where it merges none (docs/log.md).
    torch._inductor.config.triton.mix_order_reduction = False
    for layer in decoder_layers(model):
        # Compile forward, not __call__: hooks (FSDP gathers and frees weights in them) stay outside the compiled region.
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True)

"""`loglikelihood`, `generate` and `probe`: commands on a model, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.commands import options
from app.commands.textfiles import read_chats, read_lines, read_pairs, require_text, require_writable, write_scored
from app.runtime.progress import waiting
from jobs.config.load import resolve
from jobs.config.schema import LEAKING, MASKS, NOT_LEAKING, Mask, mask_by_layer
from jobs.errors import ConfigError

if TYPE_CHECKING:
    from app.model.load import Loaded
    from app.scoring.generate import Cache


def _load(profile: str, model: str | None, runs_dir: Path, layers: str | None, mask: Mask | None = None,
          sets: tuple[str, ...] = (), dtype: str | None = None) -> tuple[Loaded, str]:  # fmt: skip
    """The model, whose laws under `mask` were checked, and the layers that a mask holds in."""
    chosen = resolve("stage1", profile, sets=sets).profile
    from app.attention import selfcheck
    from app.attention.layers import restrict, trained_layers
    from app.model.load import find_checkpoint, load

    checkpoint = find_checkpoint(model, runs_dir, chosen.name) if model is not None else None
    with waiting("load the model"):
        loaded = load(chosen.model, checkpoint=checkpoint, dtype=dtype)
    layers = layers or trained_layers(loaded.model)
    restrict(loaded.model, layers)
    if mask is not None:
        selfcheck.require(loaded.model, [mask], loaded.origin)
    return loaded, layers


@click.command()
@options.profile
@options.model
@click.option("--mask", type=click.Choice(MASKS), required=True, help="Which token may attend to which; the context is "
              "the prefix. bidirectional leaks the answer. See docs/mask.md.")  # fmt: skip
@click.option("--pairs", type=options.FILE, required=True,
              help='JSON lines {"context": "...", "continuation": "..."}; other keys are kept.')  # fmt: skip
@click.option("--out", type=options.FILE, required=True, help="The same lines in the same order, with logprob (nats), n_tokens, "
              "n_chars and greedy: whether greedy decoding gives this continuation.")  # fmt: skip
@options.dtype
@click.option("--format", "boundary", type=click.Choice(["harness", "reference"]), default="harness", show_default=True,
              help="The rule for where a continuation begins, in tokens; see docs/mask.md.")  # fmt: skip
@options.batch(8192)
@options.layers
@options.runs
def loglikelihood(profile: str, model: str | None, mask: Mask, layers: str | None, pairs: Path, out: Path, dtype: str | None,
                  boundary: str, batch_tokens: int, runs_dir: Path) -> None:  # fmt: skip
    """Score continuations given contexts, under any mask."""
    resolve("stage1", profile)
    lines = read_pairs(pairs)
    require_writable(out)
    if out.resolve() == pairs.resolve():
        raise ConfigError("--out", f"{out} is what --pairs reads, and would be replaced", "name another file")
    from app.runtime.progress import token_bar
    from app.scoring import loglikelihood
    from app.scoring.encode import ENCODERS, require_fits, unclean

    loaded, layers = _load(profile, model, runs_dir, layers, mask, dtype=dtype)
    requests = ENCODERS[boundary](loaded.tokenizer, [(row["context"], row["continuation"]) for _, row in lines])
    names = [where for where, _ in lines]
    require_fits(loaded, requests, names)
    with token_bar(mask) as show:
        scored = loglikelihood.loglikelihood(loaded, requests, mask, batch_tokens=batch_tokens, progress=show)
    write_scored(out, lines, scored, [request.boundary for request in requests])
    leaks = ", which LEAKS the answer" if mask in LEAKING else ""
    click.echo(f"{out}: {len(lines)} pairs under {mask_by_layer(mask, layers)}{leaks}")
    if found := unclean(requests, names):
        click.echo(found)


@click.command()
@options.profile
@options.model
@click.option(
    "--mask", type=click.Choice(NOT_LEAKING), default="prefix", show_default=True, help="How the prompt is read."
)
@click.option("--prompt", metavar="TEXT", help="One prompt.")
@click.option("--prompts", type=options.FILE, help="In place of --prompt: a file with a prompt a line.")
@click.option("--chats", type=options.FILE,
              help='In place of both: JSON lines {"messages": [{"role": ..., "content": ...}, ...]}. Each message of a user that '
              "no answer follows gets one; the keys and values of earlier turns are kept.")  # fmt: skip
@options.count("--max-new-tokens", 64, "Length of an answer at most.")
@click.option("--chat", is_flag=True, help="Put each prompt into the tokenizer's chat template.")
@click.option("--stream/--no-stream", default=None, help="Write each answer while it is decoded, one prompt after "
              "another. Default: for a single prompt; several are answered in batches.")  # fmt: skip
@click.option("--cache", type=click.Choice(["dynamic", "static"]), default="dynamic", show_default=True,
              help="Of keys and values: growing with the answer, or of full size from the start.")  # fmt: skip
@options.layers
@options.runs
def generate(profile: str, model: str | None, mask: Mask, layers: str | None, prompt: str | None, prompts: Path | None,
             chats: Path | None, max_new_tokens: int, chat: bool, stream: bool | None, cache: Cache,
             runs_dir: Path) -> None:  # fmt: skip
    """Answer prompts that are read under a mask. Greedy: prefill under the mask, then ordinary cached decoding."""
    resolve("stage1", profile)
    if chats is not None:
        if prompt is not None or prompts is not None or stream is not None or cache != "dynamic":
            fact = "--chats takes no --prompt, --prompts, --stream and --cache"
            raise ConfigError("generate", fact, "leave them out")
        given = read_chats(chats)
        _answer_chats(_load(profile, model, runs_dir, layers, mask)[0], mask, given, max_new_tokens)
        return
    if prompt is not None and prompts is None:
        texts = [prompt]
        require_text(prompt, "--prompt")
    elif prompts is not None and prompt is None:
        texts = [line for line in read_lines(prompts) if line.strip()]
    else:
        raise ConfigError("generate", "expected one of --prompt, --prompts and --chats", "give a text, or a file")
    if not texts:
        raise ConfigError(str(prompts), "holds no prompts", "write one prompt a line")
    from app.scoring import generate as decoding

    loaded, _ = _load(profile, model, runs_dir, layers, mask)
    ids = decoding.encode_prompts(loaded, texts, chat=chat)
    decoding.require_fits(loaded, ids, max_new_tokens)
    if stream or (stream is None and len(ids) == 1):
        for text, one in zip(texts, ids, strict=True):
            if len(ids) > 1:
                click.echo(f"> {text}")
            streamer = decoding.AnswerStreamer(loaded)
            decoding.generate(loaded, [one], mask, max_new_tokens=max_new_tokens, streamer=streamer, cache=cache)
        return
    answers = decoding.answers(loaded, ids, mask, max_new_tokens=max_new_tokens, cache=cache)
    for text, answer in zip(texts, answers, strict=True):
        _show(loaded, text, answer)


def _answer_chats(loaded: Loaded, mask: Mask, chats: Sequence[tuple[str, list[dict[str, Any]]]], most: int) -> None:
    from app.scoring.conversation import Chat, rounds

    if not loaded.tokenizer.chat_template:
        raise ConfigError("--chats", f"the tokenizer of {loaded.origin} has no chat template", "use --prompts")
    for where, messages in chats:
        talk = Chat(loaded, mask, where)
        for some in rounds(messages):
            _show(loaded, some[-1]["content"], talk.ask(some, max_new_tokens=most))


def _show(loaded: Loaded, prompt: str, answer: Sequence[int]) -> None:
    click.echo(f"> {prompt}\n{loaded.tokenizer.decode(answer, skip_special_tokens=True)}\n")


@click.command()
@options.profile
@options.model
@options.sets("Override one key of the profile, such as model.attention=eager.")
@options.layers
@options.runs
def probe(profile: str, model: str | None, sets: tuple[str, ...], layers: str | None, runs_dir: Path) -> None:
    """Check the laws of each mask on the loaded model. Each layer type by itself; exit 2 if one does not hold.

    Every run checks those of its own masks at its start; the laws are in docs/mask.md.
    """
    resolve("stage1", profile, sets=sets)
    from app.attention import selfcheck as laws
    from app.attention.model_config import layer_types

    loaded, _ = _load(profile, model, runs_dir, layers, sets=sets)
    kinds = layer_types(loaded.model)
    click.echo(f"{loaded.origin}: {', '.join(f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds))} layers, "
               f"{loaded.attention}, {loaded.dtype}, {loaded.device}")  # fmt: skip
    findings = [*laws.check_dependence(loaded.model, MASKS), *laws.check_equivalences(loaded.model, MASKS),
                *laws.check_company(loaded.model)]  # fmt: skip
    for finding in sorted(findings, key=lambda f: MASKS.index(f.mask)):
        click.echo(f"{'holds' if finding.holds else 'FAILS':6} {finding.mask:14} {finding.law}"
                   + (f" ({finding.detail})" if finding.detail else ""))  # fmt: skip
    if broken := sum(not finding.holds for finding in findings):
        fact = f"{broken} of {len(findings)} laws do not hold"
        raise ConfigError(loaded.origin, fact, "its scores under a mask mean nothing")

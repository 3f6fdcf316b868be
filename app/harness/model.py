"""lm-evaluation-harness under any mask: the model `prefill` for its tasks. The only door to `lm_eval`, which is optional.

docs/harness.md has the prefix of each kind of request, and both command lines. A context too long is cut from the left, as the
harness does, and the rest of it stays the prefix; cuts are counted. Not covered: several processes, sampling, beams, images.
"""

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from app.attention import selfcheck
from app.data.array_cache import definition_of
from app.harness.response_cache import claim, fingerprint
from app.model.load import Loaded, find_checkpoint, load
from app.runtime.progress import token_bar
from app.scoring import loglikelihood as score
from app.scoring.encode import Request, encode_harness, encode_texts, start_token
from jobs.config.load import DEFAULT_PROFILE, resolve
from jobs.config.schema import LEAKING, MASKS
from jobs.errors import EXIT_USER, ConfigError, DataError, UserError, expanded

try:
    from jinja2 import TemplateError
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from app.harness.fewshot import leave_scored_item_out
    from app.harness.generate import greedy_answers
except ModuleNotFoundError as error:
    raise ConfigError("app.harness.model", f"lm-evaluation-harness is not whole: no module {error.name}",
                      "make setup, or pip install lm_eval==0.4.13") from error  # fmt: skip

log = logging.getLogger(__name__)
LEAKS = "mask bidirectional LEAKS: each answer token sees itself, so these numbers mean little"
leave_scored_item_out()


@register_model("prefill")
class PrefillLM(TemplateLM):
    """A model of ours behind the harness's interface, under one mask.

    Args, as in `--model_args mask=prefix,profile=embedded`:
        mask: causal, prefix, segment (the context is one turn) or bidirectional (leaks; loglikelihood only). Required.
        profile, model, runs_dir, dtype: as the options of `python -m app loglikelihood`.
        batch_tokens: padded tokens a batch; the harness's batch_size is not used.
        max_gen_toks: tokens generated at most, for tasks that set no number.
        device: cpu, or the profile's. loaded: a model in memory, in place of the profile's.

    Raises:
        UserError: an unknown argument, mask, profile or checkpoint, or a model on which the mask's laws do not hold.
    """

    def __init__(self, mask: str = "", profile: str = DEFAULT_PROFILE, model: str | None = None, *,
                 runs_dir: str | None = None, dtype: str | None = None, device: str | None = None,
                 batch_tokens: int = 8192, max_gen_toks: int = 256, loaded: Loaded | None = None,
                 batch_size: object = None, max_batch_size: object = None, **unknown: object) -> None:  # fmt: skip
        super().__init__()
        if mask not in MASKS:
            fact = f"expected one of {', '.join(MASKS)}, found {mask!r}"
            raise ConfigError("model_args: mask", fact, "add mask=prefix")
        if unknown:
            names = "mask, profile, model, runs_dir, dtype, device, batch_tokens, max_gen_toks"
            raise ConfigError("model_args", f"unknown key {min(unknown)}", f"the keys are {names}")
        for name, value in (("batch_tokens", batch_tokens), ("max_gen_toks", max_gen_toks)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"model_args: {name}", f"expected a positive integer, found {value!r}")
        self.mask, self.profile = mask, profile
        self.leaks = mask in LEAKING
        self.loaded = loaded or _load(profile, model, runs_dir, dtype, device)
        selfcheck.require(self.loaded.model, [self.mask], self.loaded.origin)
        self.tokenizer = self.loaded.tokenizer
        self.batch_tokens, self.max_gen_toks = batch_tokens, max_gen_toks
        self.counts = {"contexts_truncated": 0, "contexts_not_a_token_prefix": 0}
        self.run = score.Count()
        if self.leaks:
            log.warning(LEAKS)

    # ---- the harness's interface of a model --------------------------------------------------------------------------

    @property
    def device(self) -> Any:
        return self.loaded.device

    @property
    def max_length(self) -> int:
        return self.loaded.max_length

    @property
    def eot_token_id(self) -> int:
        return self._special(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Stands for an empty context: the beginning-of-sequence token, or where there is none the end's."""
        return self._special(start_token(self.tokenizer))

    def _special(self, token: int | None) -> int:
        if token is None:
            raise DataError(f"the tokenizer of {self.loaded.origin}", "has no beginning- or end-of-sequence token, and the task "
                            "needs one", "set bos_token and eos_token in tokenizer_config.json")  # fmt: skip
        return int(token)

    @property
    def tokenizer_name(self) -> str:
        """Part of the key of the harness's cache of built requests, which are texts, and so the same under any mask."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Special tokens before the text as the tokenizer adds them, but none to a text that begins with a written BOS."""
        if add_special_tokens is None:
            return encode_texts(self.tokenizer, [string])[0]
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text. As in HFLM, a template without system turns gets the conversation without its system turn."""
        options = dict(tokenize=False, add_generation_prompt=add_generation_prompt,
                       continue_final_message=not add_generation_prompt)  # fmt: skip
        if not self.tokenizer.chat_template:
            raise DataError("--apply_chat_template", f"the tokenizer of {self.loaded.origin} has no chat template",
                            "leave --apply_chat_template out")  # fmt: skip
        try:
            text = self.tokenizer.apply_chat_template(chat_history, **options)
        except TemplateError:
            log.warning("the chat template takes no system turn: it is left out")
            turns = [turn for turn in chat_history if turn["role"] != "system"]
            text = self.tokenizer.apply_chat_template(turns, **options)
        return str(text)

    def get_model_info(self) -> dict[str, Any]:
        """Facts that the harness writes into `config` of its results."""
        model = self.loaded
        return {"mask": self.mask, "leaks": self.leaks, "profile": self.profile, "origin": model.origin,
                "model_num_parameters": model.model.num_parameters(), "model_dtype": model.dtype,
                "attention": self.run.attention or model.attention, "batch_tokens": self.batch_tokens, **self.counts}  # fmt: skip

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse a response cache (`--use_cache`) of another mask or model: its keys are made of the texts alone.

        With the text, mask, tokenizer and context length also fix the prefix length of a request.

        Raises:
            ConfigError: the file holds answers of something else.
        """
        if cache_hook.dbdict is not None:
            claim(cache_hook.dbdict, {
                "mask": self.mask, "weights": fingerprint(self.loaded.model), "dtype": self.loaded.dtype,
                "arithmetic": score.ARITHMETIC, "tokenizer": definition_of(self.tokenizer) or self.tokenizer_name,
                "max_length": self.max_length, "max_gen_toks": self.max_gen_toks,
            })  # fmt: skip
        super().set_cache_hook(cache_hook)

    # ---- log-likelihoods ---------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(sum of log-probabilities in nats, greedy) of each (context, continuation)."""
        pairs = [request.args for request in requests]
        encoded = encode_harness(self.tokenizer, pairs)
        self.counts["contexts_not_a_token_prefix"] += sum(not request.is_prefix for request in encoded)
        return self._score(encoded, disable_tqdm)

    def _loglikelihood_tokens(self, requests: Iterable[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False,
                              **kwargs: Any) -> list[tuple[float, bool]]:  # fmt: skip
        return self._score([Request(tuple(context), tuple(rest)) for _, context, rest in requests], disable_tqdm)

    def _score(self, requests: Sequence[Request], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        if not requests:
            return []
        self.loaded.require_rows(((*one.context, *one.continuation) for one in requests),
                                 (f"request {number}" for number in range(1, len(requests) + 1)))  # fmt: skip
        cut = self.counts["contexts_truncated"]
        fitting = [self._fit(request) for request in requests]
        if cut := self.counts["contexts_truncated"] - cut:
            log.warning(f"{cut} of {len(requests)} contexts are cut from the left to fit {self.max_length} tokens")
        with nullcontext() if disable_tqdm else token_bar(self.mask) as show:
            scored = score.loglikelihood(
                self.loaded, fitting, self.mask, batch_tokens=self.batch_tokens, progress=show, count=self.run
            )
        score.require_finite(scored, (f"request {number}" for number in range(1, len(requests) + 1)))
        return [(one.logprob, one.greedy) for one in scored]

    def _fit(self, request: Request) -> Request:
        """Cut the context from the left to the model's length. The last token of all predicts nothing and needs no room,
        unless the mask leaks: then all are fed."""
        room = self.max_length + (not self.leaks) - len(request.continuation)
        if not request.continuation or room < 1:
            raise DataError("a request", f"has a continuation of {len(request.continuation)} tokens, where the model's "
                            f"context holds {self.max_length}", "use a model with a longer context, or other items")  # fmt: skip
        if len(request.context) <= room:
            return request
        self.counts["contexts_truncated"] += 1
        return Request(request.context[-room:], request.continuation, request.boundary)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Sum of log-probabilities of each text, in windows of the model's context; every token is scored once."""
        windows: list[Request] = []
        counts = []
        for request in requests:
            pairs = get_rolling_token_windows(self.tok_encode(request.args[0]), self.prefix_token_id,
                                              max_seq_len=self.max_length - self.leaks, context_len=1)  # fmt: skip
            own = [Request(tuple(context), tuple(rest)) for context, rest in map(make_disjoint_window, pairs)]
            windows += own
            counts.append(len(own))
        scores = iter(self._score(windows, disable_tqdm))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    # ---- generation --------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The greedy continuation of each prompt, up to a stop sequence, the end of the text or max_gen_toks.

        Raises:
            ConfigError: a mask that leaks, sampling or beams.
        """
        if self.leaks and requests:
            raise ConfigError(f"mask {self.mask}", "cannot generate: an answer token would have to see those after it",
                              "use mask=prefix or mask=causal")  # fmt: skip
        texts = [""] * len(requests)
        for index, text in greedy_answers(self, [request.args for request in requests]):
            texts[index] = text
            self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return texts


def _load(profile: str, model: str | None, runs_dir: str | None, dtype: str | None, device: str | None) -> Loaded:
    # The harness asks for cuda:0 by default, and takes the CPU where there is none: so does `device: auto`.
    if device not in (None, "cpu", "cuda", "cuda:0"):
        raise ConfigError("device", f"expected cpu or cuda, found {device}", "choose a GPU with CUDA_VISIBLE_DEVICES")
    chosen = resolve("stage1", profile, sets=["model.device=cpu"] if device == "cpu" else []).profile
    if dtype not in (None, "auto", "float32", "bfloat16"):
        raise ConfigError("model_args: dtype", f"expected auto, float32 or bfloat16, found {dtype}")
    if chosen.gpus > 1:
        log.warning(f"profile {chosen.name}: gpus: {chosen.gpus}, and the harness's tasks are scored on one")
    runs = expanded(runs_dir or os.environ.get("PREFILL_RUNS") or "runs")
    checkpoint = find_checkpoint(model, runs, chosen.name) if model is not None else None
    return load(chosen.model, checkpoint=checkpoint, dtype=dtype)


def main() -> int:
    """lm_eval's own command line, with `prefill` among its models; `python -m app.harness --help` shows it."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        if not str(error).startswith("Tasks not found: "):
            raise
        print(f"error: --tasks: {error}; see python -m app.harness ls tasks", file=sys.stderr)
        return EXIT_USER
    if any(f"mask={mask}" in argument for argument in sys.argv for mask in LEAKING):
        print(LEAKS)
    return 0

"""Every causal language model of the installed transformers, tiny and random: it is refused in one line, or it is right.

Right means: the laws of the self-check hold, `causal` equals plain transformers, `prefix` equals plain transformers with a
dense mask, greedy decoding equals a recomputation of every step, and the loss that three steps of training logged equals that of
`final/`, read back from disk (tests/app/oracle.py). docs/models.md is the table.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from app.attention import selfcheck
from app.attention.model_config import layer_types
from app.data.examples import TokenExample
from app.model.load import Loaded, _missing_package, from_config, ready
from app.scoring.encode import Request
from app.scoring.generate import generate
from app.scoring.loglikelihood import loglikelihood
from app.training import fsdp
from app.training.batch import Collator, Schedule, Steps, prepared
from app.training.checkpoint import save_final
from app.training.loop import TrainingLoop
from app.training.saved import Logged
from app.training.train import _trainable, require_loadable
from jobs.config.profile import ModelSource
from jobs.config.schema import Train
from jobs.errors import ModelError, UserError
from tests.app import oracle

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCAB = 97
LARGEST = 5_000_000  # parameters; more is a configuration that was not made small
CLOSE = 1e-3  # nats of an answer of a few tokens, float32
_LAYERS, _HEADS, _WIDTH, _INNER, _EXPERTS = 3, 4, 32, 48, 4
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "n_embed", "embed_dim", "dim", "embedding_size"), _WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "dim_ff", "decoder_ffn_dim",
                     "encoder_ffn_dim"), _INNER),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), _HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), _EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k", "num_key_value_heads"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    "vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "head_dim": 16,
    "global_head_dim": 16, "rotary_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "query_pre_attn_scalar": 16, "sliding_window": 6,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_nextn_predict_layers": 0, "initializer_range": 0.3,
}  # fmt: skip
# What small numbers do not agree with by themselves.
_MLA = dict(num_key_value_heads=4, head_dim=8)
_MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=4, mamba_n_groups=1)
_VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
_OWN: dict[str, dict[str, Any]] = {
    "axk1": _MLA, "axk2": _MLA, "deepseek_v3": _MLA, "deepseek_v32": _MLA, "glm4_moe_lite": _MLA, "glm_moe_dsa": _MLA,
    "longcat_flash": _MLA, "minicpm3": _MLA, "youtu": _MLA, "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "helium": dict(head_dim=8), "hunyuan_v1_dense": dict(head_dim=8), "hunyuan_v1_moe": dict(head_dim=8),
    "ministral": dict(head_dim=8), "falcon": dict(head_dim=None), "nemotron": dict(num_key_value_heads=2, head_dim=8),
    "dots3_note_text": dict(num_key_value_heads=4, head_dim=8), "dots3_note": {"text_config": dict(num_key_value_heads=4, head_dim=8)},
    "cohere_compass_text": dict(rope_parameters={"full_attention": dict(rope_type="default", rope_theta=10000.0)}),
    "got_ocr2": dict(vision_config=dict(hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64,
                                        global_attn_indexes=[1], mlp_dim=48)),
    "moss_transcribe_diarize": dict(audio_config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)),
    "phi4_multimodal": dict(
        vision_config={**_VISION, "crop_size": 28},
        audio_config=dict(hidden_size=32, intermediate_size=48, num_blocks=1, num_attention_heads=2, ext_pw_out_channel=32,
                          depthwise_separable_out_channel=32, nemo_conv_channels=32),
    ),
    "bamba": dict(layer_types=None, attn_layer_indices=[1], **_MAMBA),
    "granitemoehybrid": dict(layer_types=["mamba", "attention", "mamba"], **_MAMBA),
    "dots1": dict(n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1),
    "dbrx": dict(attn_config=dict(kv_n_heads=2, rope_theta=10000.0, clip_qkv=8.0)),
    "gemma3": dict(vision_config=_VISION), "git": dict(vision_config=_VISION),
    "gemma3n_text": dict(num_kv_shared_layers=0),
    "gpt_neo": dict(attention_types=[[["global", "local", "global"], 1]]),
    "lfm2": dict(layer_types=["conv", "full_attention", "conv"]),
    "lfm2_moe": dict(layer_types=["conv", "full_attention", "conv"]),
    "prophetnet": dict(num_hidden_layers=None, num_encoder_layers=1, num_decoder_layers=2, encoder_ffn_dim=48,
                       num_encoder_attention_heads=4, num_decoder_attention_heads=4),
    "reformer": dict(is_decoder=True, axial_pos_embds=False), "roc_bert": dict(pronunciation_vocab_size=97, shape_vocab_size=97),
    "hrm_text": dict(initializer_range=0.02),  # 0.3 makes its recurrence chaotic: a rounding becomes 1e-3
    **{name: dict(layer_types=None) for name in ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "recurrent_gemma",
                                                 "qwen4_exp_text")},
    "qwen4_exp": {"text_config": dict(layer_types=None)},
    "xlnet": dict(max_position_embeddings=None), "xlstm": dict(v_head_dim=None),
    "xmod": dict(languages=["en_XX"], default_language="en_XX"), "zaya": dict(num_experts_per_tok=1),
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """`reason`: one line, for what is refused and for what is wrong."""

    kind: Literal["right", "refused", "wrong", "not tried"]
    reason: str = ""
    attention: str = ""
    layers: str = ""


def tiny(model_type: str) -> Any:
    """A small configuration: every known size that the type has, and what it needs besides."""
    made = CONFIG_MAPPING[model_type]
    return made(**_sizes(made, made(), _OWN.get(model_type, {})))


def _sizes(made: Any, default: Any, own: dict[str, Any]) -> dict[str, Any]:
    inner = getattr(made, "sub_configs", {}).get("text_config")
    if inner is not None:
        inner = type(default.text_config)  # of some the class above is AutoConfig
        return {"text_config": inner(**_sizes(inner, inner(), own.get("text_config", {}))),
                **{key: value for key, value in own.items() if key != "text_config"}}  # fmt: skip
    given = {key: value for key, value in _SMALL.items() if _has(default, key)}
    if kinds := list(dict.fromkeys(getattr(default, "layer_types", None) or [])):  # each of them, if there are few
        given["layer_types"] = [kinds[layer % len(kinds)] for layer in range(_LAYERS)]
    return {key: value for key, value in {**given, **own}.items() if value is not None}


def _has(default: Any, key: str) -> bool:
    try:
        return getattr(default, key, None) is not None
    except RuntimeError:  # its layers differ in it
        return True


def verdict(model_type: str, trains: bool = True) -> Verdict:
    """What our product does with a small random model of the type. `trains`: whether training and saving are tried too."""
    try:
        torch.manual_seed(0)
        config = tiny(model_type)
        with torch.device("meta"):
            size = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            return _at_its_own_size(model_type, f"{size:,} parameters")
    except Exception as error:
        return _at_its_own_size(model_type, _line(error))
    try:
        torch.manual_seed(0)
        loaded = ready(from_config(config, "auto", model_type), None, model_type, ModelSource(source="random", device="cpu", config={"model_type": model_type}))  # fmt: skip
        selfcheck.require(loaded.model, ["causal", "prefix"], model_type)
    except UserError as error:
        return Verdict("refused", _line(error))
    except Exception as error:
        if broken := _broken(config):
            return Verdict("not tried", f"no small configuration: {broken}")
        return Verdict("wrong", f"not refused in one line: {_line(error)}")
    untrained = ""
    kinds = layer_types(loaded.model)
    try:
        wrong = faults(loaded)
        if trains and not wrong:
            wrong = training_faults(loaded)
    except ModelError as error:
        wrong, untrained = [], f"; not trained: {error.fact}"
    except Exception as error:
        wrong = [_line(error)]
    layers = ", ".join(kind.removesuffix("_attention") for kind in sorted(set(kinds)))
    return Verdict(
        "wrong" if wrong else "right", "; ".join(wrong), loaded.attention.removeprefix("prefill_"), layers + untrained
    )


def _at_its_own_size(model_type: str, why: str) -> Verdict:
    """Of a type without a small model, for the reason `why`: refused without weights, as before they are downloaded, or not tried."""
    try:
        with torch.device("meta"):
            from_config(CONFIG_MAPPING[model_type](), "auto", model_type)
    except UserError as error:
        return Verdict("refused", _line(error))
    except Exception as error:
        if missing := _missing_package(error, _line(error)):
            return Verdict("refused", f"{model_type}: needs the Python package {missing}")
    return Verdict("not tried", f"no small configuration: {why}")


def faults(loaded: Loaded) -> list[str]:
    """Each number of ours that is not the oracle's."""
    found = [
        f"{f.mask}: {f.law}: {f.detail}"
        for f in selfcheck.check_equivalences(loaded.model, ["causal", "prefix"])
        if not f.holds
    ]
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in (9, 4, 14)]
    requests = [
        Request(tuple(text), tuple(torch.randint(3, VOCAB, (m,), generator=generator).tolist()))
        for text in texts
        for m in (1, 3, 5)
    ]
    plain = oracle.plain(loaded.model)
    for mask in ("causal", "prefix"):
        ours = loglikelihood(loaded, requests, mask)
        gaps = [
            abs(s.logprob - oracle.logprob(plain, list(r.context), list(r.continuation), mask))
            for s, r in zip(ours, requests, strict=True)
        ]
        if not max(gaps) <= CLOSE:
            found.append(f"{mask}: scores differ by {max(gaps):.1e} from plain transformers")
        loaded.model.generation_config.eos_token_id = None
        said = generate(Loaded(loaded.model, _NoTokenizer(), "zoo", loaded.max_length), texts, mask, max_new_tokens=6)
        if said != [oracle.greedy(plain, text, 6, mask) for text in texts]:
            found.append(f"{mask}: greedy decoding differs from a recomputation")
    return found


def training_faults(loaded: Loaded) -> list[str]:
    """Of three steps of training: the loss that was logged against plain transformers on `final/`, read back from disk.

    The model is changed: it is trained, and then written.
    """
    generator = torch.Generator().manual_seed(2)
    rows = [
        TokenExample(*(tuple(torch.randint(3, VOCAB, (n,), generator=generator).tolist()) for n in sizes), str(at), "")
        for at, sizes in enumerate([(7, 3), (2, 5), (9, 1), (4, 4), (12, 2), (3, 3)])
    ]
    train, held_out = rows[:4], rows[4:]
    require_loadable(loaded.model, "training")
    section = Train(mask="prefix", max_steps=3, batch_size=2, micro_batch_size=2, learning_rate=1e-3, warmup_steps=0, keep="last",
                    kill_after_steps=None, precision="fp32")  # fmt: skip
    steps = Steps(Collator("prefix"), 512, 2)
    logged: dict[int, float] = {}
    with TemporaryDirectory() as place:
        loop = TrainingLoop(
            _trainable(loaded.model, section), section, accelerator=fsdp.accelerator(loaded.device, False, False), steps=steps,
            schedule=Schedule([train], [1.0], 3, 2, 0), eval_batches=steps.passes(held_out), directory=Path(place) / "checkpoints",
            recorder=_Silent(), on_evaluation=lambda step, loss: bool(logged.update({step: loss})),  # type: ignore[arg-type]
        )  # fmt: skip
        loop.prepare()
        loop.run()
        loop.finish()
        batches = [prepared(loop.eval_collator(some)) for some in steps.passes(held_out)]
        save_final(loop.whole_model(), _NoTokenizer(), Path(place) / "final", dtype=torch.float32, about=_ABOUT,
                   logged=Logged(logged[3], batches, loaded.attention, False))  # fmt: skip
        plain = transformers.AutoModelForCausalLM.from_pretrained(Path(place) / "final", attn_implementation="eager")
    loss = -sum(
        oracle.logprob(plain, list(e.prompt_ids), list(e.response_ids), "prefix", feed_last=True) for e in held_out
    )
    loss /= sum(len(e.response_ids) for e in held_out)
    found = (
        [] if abs(loss - logged[3]) <= CLOSE else [f"final/ has a loss of {loss:.4f}, and {logged[3]:.4f} was logged"]
    )
    return found if logged[3] != logged[0] else [*found, "three steps of training changed nothing"]


def _broken(config: Any) -> str:
    """Why transformers itself does not run the small model; empty if it does."""
    try:
        plain = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            plain(input_ids=torch.tensor([[3, 4, 5]]))
    except Exception as error:
        return _line(error)
    return ""


class _NoTokenizer:
    eos_token_id = chat_template = None

    def save_pretrained(self, directory: Path) -> None:
        """Writes nothing."""


class _Silent:
    """In place of a run's recorder."""

    stop = False

    def __getattr__(self, name: str) -> _Silent:
        return self

    def __call__(self, *_: object, **__: object) -> None:
        pass


_ABOUT = {"mask": "prefix", "origin": "base", "run": "stage3b/x", "steps": 3, "objective": {}, "data": "zoo"}


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if isinstance(error, UserError) else f"{type(error).__name__}: {text}")[:220]


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:] or TYPES:
        print(name, verdict(name), flush=True)

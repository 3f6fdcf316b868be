"""A GGUF file as a directory of fp32 weights and a tokenizer that plain `from_pretrained` reads."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from app.embedded.wheels import notice
from jobs.errors import CheckpointError

_INSTEAD = "use the model's original weights, with model.source hub or path"


def require(file: Path) -> None:
    """Raises CheckpointError for anything but a GGUF file."""
    start = b""
    with suppress(OSError), file.open("rb") as opened:
        start = opened.read(4)
    if start != b"GGUF":
        raise CheckpointError(file, "is no GGUF file", "give a file as llama.cpp writes it")


def convert(file: Path, directory: Path) -> None:
    """Dequantise `file` into fp32 safetensors, with its tokenizer, under `directory`.

    Raises:
        CheckpointError: transformers does not know its architecture or its quantisation, or it lacks weights.
    """
    notice(f"dequantising {file.name} to fp32, once: about half a minute")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    auto: Any = AutoModelForCausalLM  # whose annotation leaves out the second value
    dense = GgufConfig(dequantize=True)  # else blocks may stay packed when a kernel is at hand
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "quantization_config": dense}
    try:
        quantised, info = auto.from_pretrained(file.parent, gguf_file=file.name, **options)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # of the reader, the dequantiser, the tokenizer's converter
        fact = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(file, f"does not convert: {fact}", _INSTEAD) from error
    if lacking := sorted(info["missing_keys"]):  # transformers would initialise them at random
        raise CheckpointError(file, f"lacks {len(lacking)} weights, such as {lacking[0]}", _INSTEAD)
    # transformers refuses to save whatever came out of a GGUF, so the weights move to a model that did not.
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):  # the last is the GGUF's own title
        settings.pop(key, None)
    config = type(quantised.config).from_dict(settings)
    config.architectures = [type(quantised).__name__]
    model = type(quantised)(config).float()
    model.load_state_dict(quantised.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    model.save_pretrained(directory)
    _clean_tokenizer(tokenizer, config).save_pretrained(directory)


def _clean_tokenizer(tokenizer: Any, config: Any) -> Any:
    """The same vocabulary with the special tokens that the model's own configuration names.

    transformers 5.17 reads `<|im_start|>` as the end of sequence out of SmolLM2's GGUF, and no padding token.
    """
    from transformers import PreTrainedTokenizerFast

    ids = {name: getattr(config, f"{name}_id", None) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        chat_template=tokenizer.chat_template,
        model_max_length=config.max_position_embeddings,  # the GGUF states none
        clean_up_tokenization_spaces=False,
        **{
            name: tokenizer.convert_ids_to_tokens(id) if id is not None else getattr(tokenizer, name)
            for name, id in ids.items()
        },
    )

"""A GGUF file as a directory of fp32 weights and a tokenizer that plain `from_pretrained` reads."""

from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.embedded.wheels import notice
from jobs.errors import CheckpointError

_LOOKED_AT = 2000  # of a vocabulary's tokens, about
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
        CheckpointError: transformers does not know its architecture or its quantisation, or makes a wrong tokenizer of it; or it
            lacks weights.
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
    tokenizer = _clean_tokenizer(tokenizer, config)
    _require_own_tokens(tokenizer, file)
    tokenizer.save_pretrained(directory)


def _require_own_tokens(tokenizer: Any, file: Path) -> None:
    """Each token of a whole tokenizer is one token again: all of SmolLM2's, 99.9 % of Gemma 3's, whose bytes are not.

    transformers 5.17 made a unigram model of Gemma 3's merges, which cuts two words in three apart, and left `<bos>` out. The
    model answers all the same, and worse.

    Raises:
        CheckpointError: more than one token in ten is cut apart.
    """
    vocabulary, model = tokenizer.get_vocab(), tokenizer.backend_tokenizer.model
    names = sorted(vocabulary.keys() - tokenizer.get_added_vocab().keys(), key=vocabulary.__getitem__)
    names = names[:: max(1, len(names) // _LOOKED_AT)]
    cut = sum([token.id for token in model.tokenize(name)] != [vocabulary[name]] for name in names)
    if cut > len(names) / 10:
        fact = f"transformers {version('transformers')} (5.23 was right for Gemma 3) makes a wrong tokenizer of it"
        raise CheckpointError(file, f"{fact}: {cut} of {len(names)} of its own tokens are cut apart", _INSTEAD)


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

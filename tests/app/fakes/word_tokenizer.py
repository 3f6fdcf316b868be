"""A tokenizer small enough to see through."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def word_tokenizer(template: str = "$A") -> PreTrainedTokenizerFast:
    """A tokenizer of words: ids in the order of `vocabulary`, special tokens as `template` says."""
    vocabulary = ["<s>", "</s>", "<unk>", *"abcdefgh", "Answer", ":"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")

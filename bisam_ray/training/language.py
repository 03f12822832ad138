"""Networks for text: transformers' own classes, which all take one tensor x (B, R, T) of token ids.

    classifiers    x[:, 0] the text, x[:, 1] its segments (ignored by networks that have none) → logits (B, K)
    translators    x[:, 0] the source, x[:, 1] the target from its start token on              → logits (B, T, V)

Rows are padded at their end. What is padding they see themselves (ids equal to that of `tokens.pad`): it changes the
logits of no token. All dropout is drawn from torch's global generator.

    bert-tiny            2 layers, 128 wide, 2 heads: google/bert_uncased_L-2_H-128_A-2 but for its vocabulary
    transformer-iwslt    6 + 6 layers, 512 wide (1024 within), 4 heads, dropout 0.3
    transformer-tiny     2 + 2 layers, 64 wide (128 within), 2 heads, dropout 0.1
    transformers/NAME    AutoModelForSequenceClassification, published or in a folder

Attention is fused: for a second derivative run the forward pass under `sdpa_kernel(SDPBackend.MATH)`.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ConfigError, suggest
from .text import Tokens, line, quiet, reach

POSITIONS = 1024  # of translators, as in fairseq
LENGTHEN = (1.2, 10)  # a translation has at most 1.2 tokens per token of its source, and 10 more


class Classifier(nn.Module):
    """One of transformers' sequence classifiers.

    Args:
        network: takes input_ids and attention_mask, maybe token_type_ids.
        pad: the id of padding.
        whole: whether it takes a mask (B, 1, 1, T) as it is. One of (B, T) makes the host wait for the device: it is
            looked at whether anything is masked.
    """

    network: Any

    def __init__(self, network: nn.Module, pad: int, whole: bool = False) -> None:
        super().__init__()
        self.network, self.pad, self.whole = network, pad, whole
        kinds = getattr(network.config, "type_vocab_size", 0)
        takes = inspect.signature(network.forward).parameters
        self.segments = kinds > 1 and "token_type_ids" in takes

    def forward(self, x: Tensor) -> Tensor:
        ids = x[:, 0]
        there = ids != self.pad
        mask = there[:, None, None] if self.whole else there.long()
        segments = {"token_type_ids": x[:, 1]} if self.segments and x.shape[1] > 1 else {}
        return self.network(input_ids=ids, attention_mask=mask, **segments).logits


class Translator(nn.Module):
    """Marian's encoder and decoder: post-norm, sinusoidal positions, one matrix for both languages and the output.

    The decoder needs no mask of padding: it comes last, and no token looks ahead.
    """

    network: Any

    def __init__(self, network: nn.Module, pad: int) -> None:
        super().__init__()
        self.network, self.pad = network, pad

    def forward(self, x: Tensor) -> Tensor:
        source, target = x.unbind(1)
        length = target.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        found = self.network.model(
            input_ids=source,
            attention_mask=(source != self.pad)[:, None, None],
            decoder_input_ids=target,
            decoder_attention_mask=before.expand(len(x), 1, -1, -1),
            use_cache=False,
        )
        return self.network.lm_head(found.last_hidden_state)  # the bias that Marian adds is 0, and a copy of them all

    @torch.no_grad()
    def search(self, source: Tensor, beam: int) -> Tensor:
        """The best translations that a beam search finds, (B, ·), from the start token on.

        Hypotheses are compared by their mean log-probability per token (length penalty 1), and have at most
        1.2·T + 10 tokens. Both, and 5 for a usual beam, are fairseq's for IWSLT'14 (examples/translation/README.md).

        Args:
            source: (B, T).
        """
        from transformers import GenerationConfig

        length = int((source != self.pad).sum(1).max())
        config = self.network.config
        start, end, pad = config.decoder_start_token_id, config.eos_token_id, config.pad_token_id
        factor, more = LENGTHEN
        how = GenerationConfig(
            num_beams=beam,
            do_sample=False,
            length_penalty=1.0,
            max_length=int(factor * length) + more + 1,
            decoder_start_token_id=start,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=pad,
            suppress_tokens=[start, pad],
        )
        source = source[:, :length]
        return self.network.generate(source, attention_mask=(source != pad).long(), generation_config=how)


def bert(
    name: str, layers: int, width: int, heads: int, input_shape: tuple[int, ...], classes: int, tokens: Tokens | None
) -> nn.Module:
    """BERT's shape, four times as wide within its layers, initialised as BERT is."""
    from transformers import BertConfig, BertForSequenceClassification

    known, positions = of_text(f"model.name={name}", input_shape, tokens), 512
    if classes == known.size:
        raise ConfigError(f"model.name={name}: classifies, and translates nothing (nearest: transformer-tiny)")
    fits(f"model.name={name}", input_shape, positions)
    config = BertConfig(
        vocab_size=known.size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=positions,
        pad_token_id=known.pad,
        num_labels=classes,
    )
    return Classifier(BertForSequenceClassification(config), known.pad, whole=True)


def transformer(
    name: str,
    layers: int,
    width: int,
    within: int,
    heads: int,
    dropout: float,
    input_shape: tuple[int, ...],
    classes: int,
    tokens: Tokens | None,
) -> nn.Module:
    """An encoder and a decoder of so many layers each.

    Weights are drawn with deviation width^-½, embeddings too, which are multiplied by width^½: as in "Attention Is All
    You Need" (2017).
    """
    from transformers import MarianConfig, MarianMTModel
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    known = of_text(f"model.name={name}", input_shape, tokens)
    if classes != known.size:
        raise ConfigError(f"model.name={name}: translates, and classifies nothing (nearest: bert-tiny)")
    fits(f"model.name={name}", input_shape, longest_source())
    config = MarianConfig(
        vocab_size=known.size,
        encoder_layers=layers,
        decoder_layers=layers,
        d_model=width,
        encoder_ffn_dim=within,
        decoder_ffn_dim=within,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        dropout=dropout,
        activation_function="relu",
        init_std=width**-0.5,
        scale_embedding=True,
        max_position_embeddings=1,
        pad_token_id=known.pad,
        eos_token_id=known.end,
        decoder_start_token_id=known.start,
        forced_eos_token_id=None,
    )
    network = MarianMTModel(config)
    table = MarianSinusoidalPositionalEmbedding(POSITIONS, width)  # Marian's own would take it seconds to compute
    config.max_position_embeddings = POSITIONS
    table.weight.copy_(sinusoids(POSITIONS, width))
    network.model.encoder.embed_positions = network.model.decoder.embed_positions = table
    return Translator(network, known.pad)


def longest_source() -> int:
    """How many tokens a sentence may have, so that there are positions for its translation."""
    factor, more = LENGTHEN
    return int((POSITIONS - more - 1) / factor) // 8 * 8


def sinusoids(positions: int, width: int) -> Tensor:
    """sin(p / 10000^{2i/width}) for i < width/2, and after these their cosines; (positions, width)."""
    rates = 10_000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def published(name: str, input_shape: tuple[int, ...], classes: int, tokens: Tokens | None) -> nn.Module:
    """A classifier as it is published, or as it lies in a folder, with its weights; a head of another size is new.

    Raises:
        ConfigError: not to be had, or not for such texts.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    field = f"model.name=transformers/{name}"
    known = of_text(field, input_shape, tokens)
    if classes == known.size:
        raise ConfigError(f"{field}: classifies, and translates nothing (nearest: transformer-tiny)")
    check(name)
    folder = Path(name).expanduser()
    where = str(folder) if folder.is_dir() else name
    with quiet():
        logging.disable_progress_bar()
        try:
            config = AutoConfig.from_pretrained(where, num_labels=classes)
            if config.pad_token_id is None:
                config.pad_token_id = known.pad
            fits(field, input_shape, longest(config))
            if known.size > config.vocab_size:
                raise ConfigError(
                    f"{field}: knows {config.vocab_size} tokens, and the data have {known.size} (data.tokenizer); "
                    "leave data.tokenizer out for its own"
                )
            network, info = AutoModelForSequenceClassification.from_pretrained(
                where, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{field}: not to be had ({line(error)})") from None
    new = sorted({*info["missing_keys"], *(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])})
    if new:
        print(f"{field}: not published, but initialised: {', '.join(new)}", file=sys.stderr, flush=True)
    return Classifier(network, known.pad)


def check(name: str) -> None:
    """Whether a network of transformers can be had, as far as can be known without loading it.

    Raises:
        ConfigError: no such folder, or neither in the hub's cache nor within reach.
    """
    field = f"model.name=transformers/{name}"
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{field}: no config.json in {path}, which `save_pretrained` writes")
        return
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"{field}: no such folder{suggest(path.name, beside)}")
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", cache_dir=constants.HF_HUB_CACHE), str):
        return
    reach(field, "bring it into a folder and take model.name=transformers/FOLDER")


def of_text(field: str, input_shape: tuple[int, ...], tokens: Tokens | None) -> Tokens:
    if tokens is None:
        raise ConfigError(
            f"{field}: needs text (data.name=glue/NAME, unicode or iwslt14), not inputs of shape {input_shape}"
        )
    return tokens


def fits(field: str, input_shape: tuple[int, ...], most: int) -> None:
    most -= most % 8  # batches are padded to multiples of 8
    if input_shape[-1] > most:
        raise ConfigError(
            f"{field}: takes {most} tokens, the longest text has {input_shape[-1]}; set data.length={most}"
        )


def longest(config: Any) -> int:
    """How many tokens a published network takes; the RoBERTas count their positions from pad + 1 on."""
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or most <= 0:
        return sys.maxsize
    return most - (config.pad_token_id + 1) if "roberta" in config.model_type else most

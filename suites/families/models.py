"""Small models of many families, each with random weights and inputs of any length.

To add a family, add a row to `FAMILIES`: a maker of the kind of its inputs, with the name of its
class in transformers and the sizes that its configuration takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.suites.families import convolutions
from harness.suites.families.wrappers import Causal, Listener, Pair, Plain

VOCABULARY = 64
TEXT, SQUARE, WAVE = (8, 3, 13), (32, 48, 64), (800, 640, 1280)


@dataclass(frozen=True)
class Family:
    """A family: a maker of its module, and of an input of each of its lengths.

    The first length is that of the fixed conversion and the default of the flexible one; `axes`
    are the input's axes that have the length, none if the model takes one length only.
    """

    make: Callable[[], nn.Module]
    example: Callable[[int], Tensor]
    lengths: tuple[int, ...]
    axes: tuple[int, ...] = ()


def _model(name: str, kind: str, **sizes: Any) -> nn.Module:
    """Return a model of transformers with plain attention."""
    import transformers

    made = getattr(transformers, f"{name}Config")(**sizes)
    made._attn_implementation = "eager"
    model: nn.Module = getattr(transformers, f"{name}{kind}")(made)
    return model


def _ids(length: int) -> Tensor:
    drawn = torch.randint(4, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1))
    return drawn.to(torch.int32)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# --- makers of rows

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _decoder(
    name: str,
    plain: dict[str, Any] | None = None,
    kind: str = "ForCausalLM",
    positions: bool = False,
    **sizes: Any,
) -> Family:
    """Return the row of a causal language model; `plain` replaces Llama's names of the sizes.

    With `positions` the caller gives them; the model would compute them from the mask.
    """
    settings = {**(_LLAMA if plain is None else plain), **sizes}
    make = partial(_model, name, kind, **settings)
    return Family(lambda: Causal(make(), positions), _ids, TEXT, (1,))


def _encoder(name: str, kind: str = "Model", flexible: bool = True, **sizes: Any) -> Family:
    """Return the row of an encoder of text."""
    settings = {**_LLAMA, **sizes}
    settings = {key: value for key, value in settings.items() if value is not None}
    make = partial(_model, name, kind, **settings)
    return Family(lambda: Plain(make()), _ids, TEXT, (1,) if flexible else ())


def _translator(name: str, kind: str = "ForConditionalGeneration", **sizes: Any) -> Family:
    """Return the row of an encoder with a decoder."""
    make = partial(_model, name, kind, vocab_size=VOCABULARY, **_SPECIAL, **sizes)
    return Family(lambda: Pair(make()), _ids, TEXT, (1,))


def _image(name: str, kind: str = "Model", flexible: bool = False, **sizes: Any) -> Family:
    """Return the row of a model of pictures; attention's position embeddings fix their size."""
    make = partial(_model, name, kind, **sizes)
    return Family(
        lambda: Plain(make()),
        lambda side: _drawn(1, 3, side, side),
        SQUARE,
        (2, 3) if flexible else (),
    )


def _sound(name: str, kind: str = "Model", **sizes: Any) -> Family:
    """Return the row of a model of waves."""
    make = partial(_model, name, kind, **sizes)
    return Family(lambda: Plain(make()), lambda samples: _drawn(1, samples), WAVE, (1,))


_GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
_SIDES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 1,
}
_WAVE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": VOCABULARY,
}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}


def _module(
    make: Callable[[], nn.Module], shape: Callable[[int], tuple[int, ...]], *axes: int
) -> Family:
    lengths = SQUARE if len(axes) == 2 else WAVE
    return Family(make, lambda length: _drawn(*shape(length)), lengths, axes)


FAMILIES: dict[str, Family] = {
    # decoders of text
    "llama": _decoder("Llama", **_GROUPED),
    "mistral": _decoder("Mistral", sliding_window=6, **_GROUPED),
    "qwen2": _decoder("Qwen2", **_GROUPED),
    "qwen3": _decoder("Qwen3", head_dim=8, **_GROUPED),
    "gemma": _decoder("Gemma", head_dim=8, **_GROUPED),
    "gemma2": _decoder("Gemma2", head_dim=8, query_pre_attn_scalar=8, **_GROUPED),
    "phi": _decoder("Phi"),
    "phi3": _decoder("Phi3", **_GROUPED),
    "stablelm": _decoder("StableLm", **_GROUPED),
    "olmo": _decoder("Olmo", **_GROUPED),
    "olmo2": _decoder("Olmo2", **_GROUPED),
    "starcoder2": _decoder("Starcoder2", **_GROUPED),
    "cohere": _decoder("Cohere", **_GROUPED),
    "granite": _decoder("Granite", **_GROUPED),
    "smollm3": _decoder("SmolLM3", **_GROUPED),
    "helium": _decoder("Helium", head_dim=8, **_GROUPED),
    "glm": _decoder("Glm", head_dim=8, **_GROUPED),
    "ernie4.5": _decoder("Ernie4_5", head_dim=8, **_GROUPED),
    "gpt-neox": _decoder("GPTNeoX"),
    "gpt2": _decoder("GPT2", _GPT, "LMHeadModel"),
    "gptj": _decoder("GPTJ", _GPT, rotary_dim=4),
    "codegen": _decoder("CodeGen", _GPT, n_ctx=64, rotary_dim=4),
    "gpt-bigcode": _decoder("GPTBigCode", _GPT),
    "opt": _decoder("OPT", positions=True, hidden_size=32, ffn_dim=48, word_embed_proj_dim=32),
    "biogpt": _decoder("BioGpt"),
    # encoders of text
    "bert": _encoder("Bert"),
    "roberta": _encoder("Roberta", type_vocab_size=1),
    "electra": _encoder("Electra", embedding_size=32),
    "albert": _encoder("Albert", embedding_size=16),
    "distilbert": _encoder(
        "DistilBert",
        dim=32,
        hidden_dim=48,
        n_layers=2,
        n_heads=4,
        hidden_size=None,
        num_hidden_layers=None,
        num_attention_heads=None,
        intermediate_size=None,
    ),
    "mpnet": _encoder("MPNet"),
    "squeezebert": _encoder("SqueezeBert", embedding_size=32, q_groups=2, k_groups=2, v_groups=2),
    "mobilebert": _encoder("MobileBert", embedding_size=32, intra_bottleneck_size=16),
    "convbert": _encoder("ConvBert", embedding_size=32, head_ratio=2),
    "deberta-v2": _encoder(
        "DebertaV2", relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"]
    ),
    "modernbert": _encoder("ModernBert", cls_token_id=3, sep_token_id=2),
    "nystromformer": _encoder(
        "Nystromformer", num_landmarks=4, segment_means_seq_len=8, flexible=False
    ),
    # encoders with decoders
    "t5": _translator(
        "T5", d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    ),
    "bart": _translator("Bart", **_BART),
    "mbart": _translator("MBart", **_BART),
    "marian": _translator("Marian", "MTModel", **_BART),
    "pegasus": _translator("Pegasus", **_BART),
    "m2m-100": _translator("M2M100", **_BART),
    # pictures and text
    "clip-text": _encoder("CLIPText", "Model"),
    "clip-vision": _image("CLIPVision", **_SIDES),
    "siglip-vision": _image("SiglipVision", **_SIDES),
    # pictures
    "vit": _image("ViT", **_SIDES),
    "deit": _image("DeiT", **_SIDES),
    "beit": _image("Beit", **_SIDES),
    "dinov2": _image(
        "Dinov2",
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    "swin": _image(
        "Swin",
        image_size=32,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
    "segformer": _image(
        "Segformer",
        flexible=True,
        num_encoder_blocks=4,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        sr_ratios=[4, 2, 1, 1],
        decoder_hidden_size=16,
    ),
    "mobilevit": _image(
        "MobileViT",
        image_size=32,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        num_attention_heads=2,
    ),
    "poolformer": _image(
        "PoolFormer", flexible=True, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]
    ),
    "resnet": _image("ResNet", flexible=True, embedding_size=8, **_STAGES),
    "regnet": _image("RegNet", flexible=True, embedding_size=8, groups_width=8, **_STAGES),
    "bit": _image("Bit", flexible=True, embedding_size=8, num_groups=4, **_STAGES),
    "convnext": _image("ConvNext", flexible=True, **_STAGES),
    "convnextv2": _image("ConvNextV2", flexible=True, **_STAGES),
    "mobilenet-v2": _image("MobileNetV2", flexible=True, depth_multiplier=0.35, image_size=32),
    "efficientnet": _image(
        "EfficientNet",
        flexible=True,
        width_coefficient=0.25,
        depth_coefficient=0.2,
        image_size=32,
        hidden_dim=320,
    ),
    # sound
    "wav2vec2": _sound("Wav2Vec2", **_WAVE),
    "hubert": _sound("Hubert", **_WAVE),
    "wavlm": _sound("WavLM", **_WAVE),
    "unispeech": _sound("UniSpeech", **_WAVE),
    "data2vec-audio": _sound(
        "Data2VecAudio", **{**_WAVE, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}
    ),
    "whisper": Family(
        lambda: Listener(
            _model(
                "Whisper",
                "ForConditionalGeneration",
                vocab_size=VOCABULARY,
                num_mel_bins=16,
                max_source_positions=16,
                max_target_positions=16,
                **_SPECIAL,
                **{k: v for k, v in _BART.items() if k != "max_position_embeddings"},
            )
        ),
        lambda frames: _drawn(1, 16, frames),
        (32,),
    ),
    "audio-spectrogram-transformer": Family(
        lambda: Plain(
            _model(
                "AST",
                "Model",
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                patch_size=8,
                frequency_stride=4,
                time_stride=4,
                max_length=32,
                num_mel_bins=16,
            )
        ),
        lambda frames: _drawn(1, frames, 16),
        (32,),
    ),
    # plain PyTorch
    "unet": _module(convolutions.UNet, lambda side: (1, 3, side, side), 2, 3),
    "inception": _module(convolutions.Inception, lambda side: (1, 3, side, side), 2, 3),
    "shufflenet": _module(convolutions.Shuffle, lambda side: (1, 3, side, side), 2, 3),
    "super-resolution": _module(
        convolutions.SuperResolution, lambda side: (1, 3, side, side), 2, 3
    ),
    "tcn": _module(convolutions.Temporal, lambda samples: (1, 2, samples), 2),
    "vocoder": _module(convolutions.Vocoder, lambda samples: (1, 4, samples), 2),
    "lstm": Family(convolutions.Recurrent, lambda length: _drawn(1, length, 12), TEXT, (1,)),
}

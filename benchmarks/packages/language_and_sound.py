"""Classes of transformers, open_clip, demucs and torch_geometric."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.packages.published_class import Inputs, PublishedClass, Size, fixed_pictures

_LENGTHS = ((12,), (7,), (30,))
_SMALL = {
    "vocab_size": 200,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def _tokens(rows: int, size: Size) -> Inputs:
    """Ids from the first to the last beside a mask whose rows end at different lengths."""
    (length,) = size
    ids = torch.randint(3, 200, (rows, length))
    ids[0, 0], ids[-1, -1] = 3, 199
    lengths = torch.randint(length // 2, length + 1, (rows, 1))
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < lengths).long()}


def _network(model: str, config: str, settings: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**settings))

    return build


def _text(model: str, config: str, **changes: Any) -> PublishedClass:
    settings = {key: value for key, value in (_SMALL | changes).items() if value is not None}
    axes = {"input_ids": {1: "tokens"}, "attention_mask": {1: "tokens"}}
    return PublishedClass("transformers", model, _network(model, config, settings), _tokens, _LENGTHS, axes)


def _vision(model: str, config: str, side: int, **settings: Any) -> PublishedClass:
    inputs = fixed_pictures(side)
    return PublishedClass(
        "transformers",
        model,
        _network(model, config, settings),
        lambda rows, size: {"pixel_values": inputs(rows, size)[0]},
    )


def _wave(rows: int, size: Size) -> Inputs:
    """Shape: (rows, samples)."""
    return {"input_values": torch.randn(rows, *size)}


def _mel(rows: int, _: Size) -> Inputs:
    """Shape: (rows, mel bands, frames); the encoder takes this one length."""
    return {"input_features": torch.randn(rows, 80, 200)}


_SOUND = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def _whisper() -> nn.Module:
    import transformers

    config = transformers.WhisperConfig(
        d_model=48,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=100,
        vocab_size=200,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return transformers.WhisperModel(config).encoder


_WAVES = ((800,), (640,), (1601,))
_CLIP_VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
_DISTIL = {"vocab_size": 200, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
_T5 = {"vocab_size": 200, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_DISENTANGLED = {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}
_MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_NONE = dict.fromkeys(_SMALL)


def _open_clip(tower: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import open_clip

        towers = open_clip.CustomTextCLIP(
            embed_dim=32,
            vision_cfg={"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 16},
            text_cfg={"context_length": 16, "vocab_size": 200, "width": 64, "heads": 4, "layers": 2},
        )
        return getattr(towers, tower)

    return build


def _prompt(rows: int, _: Size) -> Inputs:
    """Ids of a fixed length, with the largest, the end of the text, somewhere in each row, zeros behind it."""
    ids = torch.randint(1, 199, (rows, 16))
    for row, end in zip(ids, torch.randint(3, 16, (rows,)).tolist(), strict=True):
        row[end] = 199
        row[end + 1 :] = 0
    return (ids,)


def _demucs() -> nn.Module:
    from demucs.demucs import Demucs

    return Demucs(
        ["drums", "rest"], audio_channels=1, channels=8, depth=3, lstm_layers=0, dconv_mode=0, resample=False
    )


def _hybrid_demucs() -> nn.Module:
    from demucs.hdemucs import HDemucs

    return HDemucs(["drums", "rest"], audio_channels=1, channels=8, depth=5, nfft=1024)


def _dense(name: str, **settings: Any) -> PublishedClass:
    def build() -> nn.Module:
        import torch_geometric.nn

        return getattr(torch_geometric.nn, name)(**settings)

    def inputs(rows: int, size: Size) -> Inputs:
        (nodes,) = size
        adjacency = (torch.rand(rows, nodes, nodes) > 0.5).float()
        mask = torch.arange(nodes) < torch.randint(nodes // 2, nodes + 1, (rows, 1))
        return {"x": torch.randn(rows, nodes, 8), "adj": adjacency, "mask": mask}

    axes = {"x": {1: "nodes"}, "adj": {1: "nodes", 2: "nodes"}, "mask": {1: "nodes"}}
    return PublishedClass("torch_geometric", name, build, inputs, ((9,), (5,), (20,)), axes)


CLASSES = (
    _text("BertModel", "BertConfig"),
    _text("BertForSequenceClassification", "BertConfig"),
    _text("BertForQuestionAnswering", "BertConfig"),
    _text("DistilBertForTokenClassification", "DistilBertConfig", **(_NONE | _DISTIL)),
    _text("RobertaForSequenceClassification", "RobertaConfig"),
    _text("AlbertModel", "AlbertConfig", embedding_size=16),
    _text("ElectraForTokenClassification", "ElectraConfig", embedding_size=16),
    _text("MPNetModel", "MPNetConfig"),
    _text("DebertaV2Model", "DebertaV2Config", **_DISENTANGLED),
    _text("XLMRobertaModel", "XLMRobertaConfig"),
    _text(
        "ModernBertModel",
        "ModernBertConfig",
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    ),
    _text("T5EncoderModel", "T5Config", **(_NONE | _T5)),
    _text("CLIPTextModelWithProjection", "CLIPTextConfig", **(_MARKS | {"eos_token_id": 199})),
    _vision("CLIPVisionModelWithProjection", "CLIPVisionConfig", 64, **_CLIP_VISION),
    _vision("ViTForImageClassification", "ViTConfig", 64, **_CLIP_VISION),
    _vision("Dinov2Model", "Dinov2Config", 64, **_CLIP_VISION),
    _vision(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        64,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
    ),
    _vision("SegformerForSemanticSegmentation", "SegformerConfig", 64, depths=[1, 1, 1, 1]),
    PublishedClass("transformers", "WhisperEncoder", _whisper, _mel),
    PublishedClass(
        "transformers",
        "Wav2Vec2ForCTC",
        _network("Wav2Vec2ForCTC", "Wav2Vec2Config", _SOUND | {"vocab_size": 32}),
        _wave,
        _WAVES,
        {"input_values": {1: "samples"}},
    ),
    PublishedClass(
        "transformers",
        "HubertModel",
        _network("HubertModel", "HubertConfig", _SOUND),
        _wave,
        _WAVES,
        {"input_values": {1: "samples"}},
    ),
    PublishedClass("open_clip", "VisionTransformer", _open_clip("visual"), fixed_pictures(64)),
    PublishedClass("open_clip", "TextTransformer", _open_clip("text"), _prompt),
    PublishedClass(
        "demucs",
        "Demucs",
        _demucs,
        lambda rows, size: (torch.randn(rows, 1, *size),),
        ((2048,), (1500,), (3001,)),
        {"mix": {2: "samples"}},
    ),
    PublishedClass("demucs", "HDemucs", _hybrid_demucs, lambda rows, _: (torch.randn(rows, 1, 4096),)),
    _dense("DenseGCNConv", in_channels=8, out_channels=6),
    _dense("DenseSAGEConv", in_channels=8, out_channels=6),
    _dense("DenseGATConv", in_channels=8, out_channels=6, heads=2),
    _dense("DenseGINConv", nn=nn.Linear(8, 6)),
)

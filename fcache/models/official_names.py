"""Official names beside ours, module by module: the table that ``official.py`` reads.

``#`` stands for a number, ``*`` for the rest of a name.
"""

from __future__ import annotations

Pairs = tuple[tuple[str, str], ...]


def below(official: str, ours: str, pairs: Pairs) -> Pairs:
    """Returns pairs with a prefix on either side."""
    return tuple((official + theirs, ours + name) for theirs, name in pairs)


DEFORMABLE: Pairs = (
    ("sampling_offsets.*", "offsets.*"),
    ("attention_weights.*", "logits.*"),
    ("value_proj.*", "value.*"),
    ("output_proj.*", "output.*"),
)
ATTENTION: Pairs = (
    ("in_proj_weight", "in_proj.weight"),
    ("in_proj_bias", "in_proj.bias"),
    ("out_proj.*", "out_proj.*"),
)
FEED_FORWARD: Pairs = (("linear1.*", "linear1.*"), ("linear2.*", "linear2.*"))
CONV_FEED_FORWARD: Pairs = (
    ("fc1.*", "linear1.*"),
    ("dwconv.dwconv.*", "depthwise.*"),
    ("fc2.*", "linear2.*"),
)
CONV_NORM: Pairs = (("0.*", "conv.*"), ("1.*", "norm.*"))

SPATIAL_PRIOR: Pairs = (
    ("stem.0.*", "stem.0.conv.*"),
    ("stem.1.*", "stem.0.norm.*"),
    ("stem.3.*", "stem.1.conv.*"),
    ("stem.4.*", "stem.1.norm.*"),
    ("stem.6.*", "stem.2.conv.*"),
    ("stem.7.*", "stem.2.norm.*"),
    *below("conv2.", "down8.", CONV_NORM),
    *below("conv3.", "down16.", CONV_NORM),
    *below("conv4.", "down32.", CONV_NORM),
    ("fc1.*", "project4.*"),
    ("fc2.*", "project8.*"),
    ("fc3.*", "project16.*"),
    ("fc4.*", "project32.*"),
)
EXTRACTOR: Pairs = (
    ("query_norm.*", "query_norm.*"),
    ("feat_norm.*", "value_norm.*"),
    *below("attn.", "attention.", DEFORMABLE),
    ("ffn_norm.*", "ffn_norm.*"),
    *below("ffn.", "ffn.", CONV_FEED_FORWARD),
)
ADAPTER: Pairs = (
    ("level_embed", "level_embed"),
    *below("spm.", "spatial_prior.", SPATIAL_PRIOR),
    *below("interactions.#.extractor.", "extractors.#.", EXTRACTOR),
    *below("interactions.3.extra_extractors.#.", "extra_extractors.#.", EXTRACTOR),
    ("up.*", "upsample.*"),
    ("norm1.*", "norms.0.*"),
    ("norm2.*", "norms.1.*"),
    ("norm3.*", "norms.2.*"),
    ("norm4.*", "norms.3.*"),
)
PIXEL_DECODER: Pairs = (
    *below("input_proj.#.", "projections.#.", CONV_NORM),
    ("transformer.level_embed", "level_embed"),
    *below(
        "transformer.encoder.layers.#.",
        "layers.#.",
        (
            *below("self_attn.", "attention.", DEFORMABLE),
            ("norm1.*", "attention_norm.*"),
            *below("", "ffn.", FEED_FORWARD),
            ("norm2.*", "ffn_norm.*"),
        ),
    ),
    ("mask_features.*", "mask_features.*"),
    ("adapter_1.weight", "lateral.conv.weight"),
    ("adapter_1.norm.*", "lateral.norm.*"),
    ("layer_1.weight", "smooth.conv.weight"),
    ("layer_1.norm.*", "smooth.norm.*"),
)
MASKED_DECODER: Pairs = (
    *below(
        "transformer_cross_attention_layers.#.multihead_attn.",
        "layers.#.cross_attention.",
        ATTENTION,
    ),
    ("transformer_cross_attention_layers.#.norm.*", "layers.#.cross_norm.*"),
    *below("transformer_self_attention_layers.#.self_attn.", "layers.#.self_attention.", ATTENTION),
    ("transformer_self_attention_layers.#.norm.*", "layers.#.self_norm.*"),
    *below("transformer_ffn_layers.#.", "layers.#.ffn.", FEED_FORWARD),
    ("transformer_ffn_layers.#.norm.*", "layers.#.ffn_norm.*"),
    ("decoder_norm.*", "norm.*"),
    ("query_feat.*", "query_features.*"),
    ("query_embed.*", "query_positions.*"),
    ("level_embed.*", "level_embed.*"),
    ("class_embed.*", "class_head.*"),
    ("mask_embed.*", "mask_head.*"),
    ("reid_embed.*", "reid_head.*"),
)
SEGMENTER: Pairs = (
    *below("backbone.", "adapter.", ADAPTER),
    *below("sem_seg_head.pixel_decoder.", "pixel_decoder.", PIXEL_DECODER),
    *below("sem_seg_head.predictor.", "masked_decoder.", MASKED_DECODER),
    ("criterion.empty_weight", "criterion.class_weight"),
)

# ViT-CoMer's parts. No published checkpoint has them beside ViT-Adapter's extractors, so they are
# no part of the segmenter's names.
MRFP: Pairs = (
    ("fc1.*", "linear1.*"),
    ("fc2.*", "linear2.*"),
    *(
        (f"dwconv.dwconv{2 * scale + kernel}.*", f"convs.{name}.{scale}.*")
        for scale in range(3)
        for kernel, name in ((1, "small"), (2, "large"))
    ),
    *((f"dwconv.bn{scale + 1}.*", f"convs.norms.{scale}.*") for scale in range(3)),
)
INTERACTION: Pairs = (
    ("query_norm.*", "query_norm.*"),
    ("feat_norm.*", "value_norm.*"),
    *below("cfinter.", "scales.", EXTRACTOR),
    ("ffn_norm.*", "ffn_norm.*"),
    *below("ffn.", "ffn.", CONV_FEED_FORWARD),
)

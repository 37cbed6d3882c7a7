"""The models of `hugging_face` that see, hear or predict series: {class: settings of its config}, by kind of input."""

from __future__ import annotations

from parity.hugging_face_models import SEQ2SEQ, SIZES, TEXT, Rows

IMAGE = dict(SIZES, image_size=32, patch_size=8, num_labels=3)
STAGES = dict(num_labels=3, image_size=32, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])

IMAGE_ENCODERS: Rows = {
    "IJepaModel": IMAGE,
    "SiglipVisionModel": IMAGE,
    "VitDetModel": dict(IMAGE, window_size=2, residual_block_indices=[0]),
    "YolosModel": dict(IMAGE, image_size=[32, 32], num_detection_tokens=4),
}

IMAGE_CLASSIFIERS: Rows = {
    "BeitForImageClassification": IMAGE,
    "BitForImageClassification": dict(STAGES, embedding_size=8, num_groups=4),
    "ConvNextForImageClassification": STAGES,
    "ConvNextV2ForImageClassification": STAGES,
    "CvtForImageClassification": dict(
        num_labels=3, embed_dim=[8, 16, 16], num_heads=[1, 2, 2], depth=[1, 2, 3], image_size=32
    ),
    "Data2VecVisionForImageClassification": IMAGE,
    "DeiTForImageClassification": IMAGE,
    "Dinov2ForImageClassification": IMAGE,
    "Dinov2WithRegistersForImageClassification": IMAGE,
    "EfficientNetForImageClassification": dict(
        num_labels=3, image_size=32, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320, depth_divisor=4
    ),
    "FocalNetForImageClassification": dict(
        num_labels=3,
        image_size=32,
        embed_dim=8,
        depths=[1, 1],
        hidden_sizes=[8, 16],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    "HieraForImageClassification": dict(
        num_labels=3,
        image_size=[32, 32],
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        num_query_pool=1,
        masked_unit_size=[4, 4],
    ),
    "LevitForImageClassification": dict(
        num_labels=3,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        depths=[1, 1, 1],
        num_attention_heads=[2, 3, 4],
        key_dim=[8, 8, 8],
    ),
    "MobileNetV1ForImageClassification": dict(num_labels=3, image_size=32, depth_multiplier=0.25),
    "MobileNetV2ForImageClassification": dict(num_labels=3, image_size=64, depth_multiplier=0.25),
    "MobileViTForImageClassification": dict(
        num_labels=3,
        image_size=32,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
        num_attention_heads=4,
        expand_ratio=2.0,
    ),
    "MobileViTV2ForImageClassification": dict(num_labels=3, image_size=64, width_multiplier=0.25),
    "PoolFormerForImageClassification": dict(num_labels=3, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16]),
    "PvtForImageClassification": dict(
        num_labels=3,
        image_size=32,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 2, 2, 2],
        patch_sizes=[4, 2, 2, 2],
    ),
    "PvtV2ForImageClassification": dict(
        num_labels=3, image_size=32, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 2, 2, 2]
    ),
    "RegNetForImageClassification": dict(STAGES, embedding_size=8, groups_width=4),
    "ResNetForImageClassification": dict(STAGES, embedding_size=8),
    "SegformerForImageClassification": dict(
        num_labels=3, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 2, 2, 2], image_size=32
    ),
    "SwiftFormerForImageClassification": dict(
        num_labels=3, image_size=32, depths=[1, 1, 1, 1], embed_dims=[8, 8, 16, 16]
    ),
    "SwinForImageClassification": dict(
        num_labels=3, image_size=32, patch_size=4, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4
    ),
    "Swinv2ForImageClassification": dict(
        num_labels=3, image_size=32, patch_size=4, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4
    ),
    "ViTForImageClassification": IMAGE,
    "ViTMSNForImageClassification": IMAGE,
}

SEGMENTERS: Rows = {
    "SegformerForSemanticSegmentation": dict(
        num_labels=3,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 2, 2, 2],
        decoder_hidden_size=16,
        image_size=32,
    ),
}

VIDEOS: Rows = {
    "TimesformerForVideoClassification": dict(SIZES, image_size=16, patch_size=8, num_frames=2, num_labels=3),
    "VideoMAEForVideoClassification": dict(
        SIZES, image_size=16, patch_size=8, num_frames=2, tubelet_size=2, num_labels=3
    ),
    "VivitForVideoClassification": dict(SIZES, image_size=16, num_frames=2, tubelet_size=[2, 8, 8], num_labels=3),
}

PAIRS: Rows = {
    "CLIPModel": dict(text_config=TEXT, vision_config=IMAGE, projection_dim=16),
    "SiglipModel": dict(text_config=dict(TEXT, projection_size=32), vision_config=IMAGE),
}

CAPTIONS: Rows = {
    "BlipForConditionalGeneration": dict(
        text_config=dict(TEXT, encoder_hidden_size=32), vision_config=IMAGE, projection_dim=16
    ),
    "GitForCausalLM": dict(TEXT, vision_config=IMAGE),
}

DESCRIPTIONS: Rows = {
    "ViltModel": dict(TEXT, image_size=32, patch_size=8, max_image_length=-1),
}

_SPEECH = dict(
    SIZES,
    vocab_size=64,
    pad_token_id=0,
    conv_dim=[16, 16],
    conv_kernel=[10, 3],
    conv_stride=[5, 2],
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
    ctc_loss_reduction="mean",
    apply_spec_augment=False,
)

SPEECH: Rows = {
    "Data2VecAudioForCTC": dict(_SPEECH, conv_pos_kernel_size=3, num_conv_pos_embeddings=2),
    "HubertForCTC": _SPEECH,
    "SEWDForCTC": dict(_SPEECH, position_buckets=8, squeeze_factor=2),
    "SEWForCTC": dict(_SPEECH, squeeze_factor=2),
    "UniSpeechForCTC": dict(_SPEECH, num_ctc_classes=64),
    "UniSpeechSatForCTC": _SPEECH,
    "Wav2Vec2ConformerForCTC": dict(_SPEECH, conv_depthwise_kernel_size=3),
    "Wav2Vec2ForCTC": _SPEECH,
    "Wav2Vec2ForCTC layer": dict(_SPEECH, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
    "WavLMForCTC": dict(_SPEECH, num_buckets=16, max_bucket_distance=32),
}

SPECTROGRAMS: Rows = {
    "WhisperForConditionalGeneration": dict(SEQ2SEQ, num_mel_bins=8, max_source_positions=12, max_target_positions=16),
}

FRAMES: Rows = {
    "Speech2TextForConditionalGeneration": dict(
        SEQ2SEQ,
        input_feat_per_channel=16,
        conv_channels=16,
        num_conv_layers=2,
        max_source_positions=32,
        max_target_positions=16,
    ),
    "Wav2Vec2BertForCTC": dict(_SPEECH, feature_projection_input_dim=16, conv_depthwise_kernel_size=3),
}

AUDIO_IMAGES: Rows = {
    "ASTForAudioClassification": dict(
        SIZES, max_length=16, num_mel_bins=16, patch_size=8, frequency_stride=8, time_stride=8, num_labels=3
    ),
}

SERIES: Rows = {
    "PatchTSTForPrediction": dict(
        d_model=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=32,
        num_input_channels=2,
        context_length=16,
        prediction_length=4,
        patch_length=4,
        patch_stride=4,
        loss="mse",
    ),
    "PatchTSMixerForPrediction": dict(
        d_model=8,
        num_layers=2,
        num_input_channels=2,
        context_length=16,
        prediction_length=4,
        patch_length=4,
        patch_stride=4,
    ),
}

_FORECAST = dict(
    context_length=12,
    prediction_length=4,
    lags_sequence=[1, 2, 3],
    num_time_features=2,
    d_model=16,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
)

FORECASTS: Rows = {
    "AutoformerForPrediction": dict(_FORECAST, label_length=4, moving_average=5),
    "InformerForPrediction": _FORECAST,
    "TimeSeriesTransformerForPrediction": _FORECAST,
}

TRAJECTORIES: Rows = {
    "DecisionTransformerModel": dict(
        state_dim=3, act_dim=2, hidden_size=32, n_layer=2, n_head=4, max_ep_len=32, n_positions=32, vocab_size=1
    ),
}

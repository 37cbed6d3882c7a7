"""The language models of `hugging_face`: {class: settings of its config}, a section for each kind of input.

What follows the class in a name tells rows of one class apart.
"""

from __future__ import annotations

from typing import Any

Rows = dict[str, dict[str, Any]]

TOKENS = dict(vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, sep_token_id=3)
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
TEXT = dict(TOKENS, **SIZES, max_position_embeddings=32, type_vocab_size=2)
REFORMER = dict(
    **dict(TOKENS, hidden_size=32, attention_head_size=8, num_attention_heads=4, feed_forward_size=48),
    **dict(axial_pos_shape=[2, 5], axial_pos_embds_dim=[16, 16], max_position_embeddings=10),
    **dict(local_attn_chunk_length=5, lsh_attn_chunk_length=5, num_buckets=4),
)
GROUPED = dict(TEXT, num_key_value_heads=2, head_dim=8)
EXPERTS = dict(GROUPED, moe_intermediate_size=16, num_experts=4, num_local_experts=4, num_experts_per_tok=2)
LATENT = dict(
    **{**EXPERTS, "head_dim": 4, "num_key_value_heads": 4},
    **dict(kv_lora_rank=8, q_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8),
    **dict(n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1),
)
HALVES = dict(
    **dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4),
    **dict(encoder_ffn_dim=48, decoder_ffn_dim=48, d_model=32, max_position_embeddings=32, decoder_start_token_id=2),
)
RWKV = dict(TOKENS, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, context_length=32)
SEQ2SEQ = dict(TOKENS, **HALVES)
T5 = dict(TOKENS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)

MASKED: Rows = {
    "AlbertForMaskedLM": dict(TEXT, embedding_size=16),
    "BertForMaskedLM": TEXT,
    "BertForMaskedLM eager": dict(TEXT, attn_implementation="eager"),
    "BigBirdForMaskedLM": dict(TEXT, attention_type="original_full"),
    "CamembertForMaskedLM": TEXT,
    "ConvBertForMaskedLM": dict(TEXT, embedding_size=32, conv_kernel_size=3),
    "Data2VecTextForMaskedLM": TEXT,
    "DebertaForMaskedLM": dict(TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "DebertaV2ForMaskedLM": dict(TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4),
    "DebertaV2ForMaskedLM plain": TEXT,
    "DistilBertForMaskedLM": dict(TOKENS, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=32),
    "ElectraForMaskedLM": dict(TEXT, embedding_size=16),
    "ErnieForMaskedLM": TEXT,
    "EsmForMaskedLM": dict(TEXT, mask_token_id=3, position_embedding_type="rotary"),
    "FunnelForMaskedLM": dict(
        TOKENS, d_model=32, n_head=4, d_head=8, d_inner=48, block_sizes=[1, 1], num_decoder_layers=1
    ),
    "IBertForMaskedLM": TEXT,
    "LayoutLMForMaskedLM": TEXT,
    "LongformerForMaskedLM": dict(TEXT, attention_window=4),
    "LukeForMaskedLM": dict(TEXT, entity_vocab_size=16, entity_emb_size=16),
    "MPNetForMaskedLM": TEXT,
    "MegatronBertForMaskedLM": TEXT,
    "MobileBertForMaskedLM": dict(
        TEXT, embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16, num_feedforward_networks=2
    ),
    "ModernBertForMaskedLM": dict(TEXT, local_attention=4, global_attn_every_n_layers=2, cls_token_id=1),
    "NomicBertForMaskedLM": dict(TEXT),
    "NystromformerForMaskedLM": dict(TEXT, segment_means_seq_len=10, num_landmarks=10),
    "PerceiverForMaskedLM": dict(
        TOKENS,
        d_model=16,
        d_latents=32,
        num_latents=6,
        num_self_attends_per_block=2,
        num_self_attention_heads=4,
        num_cross_attention_heads=4,
        max_position_embeddings=10,
    ),
    "ReformerForMaskedLM": dict(REFORMER, attn_layers=["local", "local"]),
    "RemBertForMaskedLM": dict(TEXT, input_embedding_size=16, output_embedding_size=16),
    "RoCBertForMaskedLM": dict(TEXT, shape_vocab_size=16, pronunciation_vocab_size=16),
    "RoFormerForMaskedLM": dict(TEXT, embedding_size=16),
    "RobertaForMaskedLM": TEXT,
    "RobertaPreLayerNormForMaskedLM": TEXT,
    "SqueezeBertForMaskedLM": dict(TEXT, embedding_size=32, q_groups=2, k_groups=2, v_groups=2),
    "XLMRobertaForMaskedLM": TEXT,
    "XLMRobertaXLForMaskedLM": TEXT,
    "XLMWithLMHeadModel": dict(TOKENS, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=32),
    "FlaubertWithLMHeadModel": dict(TOKENS, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=32),
    "XmodForMaskedLM": dict(TEXT, default_language="en_XX", languages=["en_XX"]),
    "YosoForMaskedLM": TEXT,
}

MASKED_WITHOUT_MASK: Rows = {
    "FNetForMaskedLM": TEXT,
    "NystromformerForMaskedLM landmarks": dict(TEXT, segment_means_seq_len=10, num_landmarks=5),
}

CAUSAL: Rows = {
    "ApertusForCausalLM": GROUPED,
    "ArceeForCausalLM": GROUPED,
    "BambaForCausalLM": dict(
        GROUPED,
        attn_layer_indices=[1],
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=4,
    ),
    "BioGptForCausalLM": TEXT,
    "BloomForCausalLM": dict(TOKENS, hidden_size=32, n_layer=2, n_head=4),
    "CTRLLMHeadModel": dict(TOKENS, n_embd=32, n_layer=2, n_head=4, dff=48, n_positions=32),
    "CodeGenForCausalLM": dict(TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=32, n_ctx=32, rotary_dim=4),
    "Cohere2ForCausalLM": dict(GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "CohereForCausalLM": GROUPED,
    "DbrxForCausalLM": dict(
        TOKENS,
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=32,
        attn_config=dict(rope_theta=10000.0, kv_n_heads=2, clip_qkv=8.0),
        ffn_config=dict(ffn_hidden_size=16, moe_num_experts=4, moe_top_k=2),
    ),
    "DeepseekV2ForCausalLM": LATENT,
    "DeepseekV3ForCausalLM": dict(LATENT, n_group=2, topk_group=1),
    "DiffLlamaForCausalLM": GROUPED,
    "DogeForCausalLM": GROUPED,
    "Ernie4_5ForCausalLM": GROUPED,
    "Exaone4ForCausalLM": dict(GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "FalconForCausalLM": dict(TEXT, new_decoder_architecture=False, multi_query=True),
    "FalconForCausalLM alibi": dict(TEXT, alibi=True, multi_query=False, parallel_attn=False),
    "FalconForCausalLM new": dict(TEXT, new_decoder_architecture=True, num_kv_heads=2),
    "FalconH1ForCausalLM": dict(
        GROUPED, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=4
    ),
    "FalconMambaForCausalLM": dict(TOKENS, hidden_size=32, num_hidden_layers=2, state_size=4),
    "GPT2LMHeadModel": dict(TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=32),
    "GPTBigCodeForCausalLM": dict(TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=32),
    "GPTJForCausalLM": dict(TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=32, rotary_dim=4),
    "GPTNeoForCausalLM": dict(
        TEXT, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=4
    ),
    "GPTNeoXForCausalLM": TEXT,
    "GPTNeoXJapaneseForCausalLM": TEXT,
    "Gemma2ForCausalLM": dict(GROUPED, sliding_window=4, query_pre_attn_scalar=8),
    "Gemma3ForCausalLM": dict(GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "GemmaForCausalLM": GROUPED,
    "Glm4ForCausalLM": GROUPED,
    "Glm4MoeForCausalLM": dict(EXPERTS, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1),
    "GlmForCausalLM": GROUPED,
    "GptOssForCausalLM": dict(EXPERTS, sliding_window=4),
    "GraniteForCausalLM": dict(GROUPED, embedding_multiplier=2.0, logits_scaling=2.0),
    "GraniteMoeForCausalLM": EXPERTS,
    "HeliumForCausalLM": GROUPED,
    "HunYuanDenseV1ForCausalLM": GROUPED,
    "JambaForCausalLM": dict(
        EXPERTS,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "JetMoeForCausalLM": dict(EXPERTS, kv_channels=8),
    "Lfm2ForCausalLM": dict(GROUPED, layer_types=["conv", "full_attention"]),
    "LlamaForCausalLM": GROUPED,
    "LlamaForCausalLM eager": dict(GROUPED, attn_implementation="eager"),
    "Llama4ForCausalLM": dict(EXPERTS, intermediate_size_mlp=48, interleave_moe_layer_step=2, attention_chunk_size=4),
    "Mamba2ForCausalLM": dict(
        TOKENS, hidden_size=32, num_hidden_layers=2, state_size=4, num_heads=4, head_dim=16, n_groups=1, chunk_size=4
    ),
    "MambaForCausalLM": dict(TOKENS, hidden_size=32, num_hidden_layers=2, state_size=4),
    "MiniMaxForCausalLM": dict(EXPERTS, block_size=4, layer_types=["linear_attention", "full_attention"]),
    "MistralForCausalLM": dict(GROUPED, sliding_window=4),
    "MixtralForCausalLM": dict(EXPERTS, output_router_logits=True),
    "ModernBertDecoderForCausalLM": dict(TEXT, local_attention=4, cls_token_id=1),
    "MptForCausalLM": dict(TOKENS, d_model=32, n_heads=4, n_layers=2, max_seq_len=32),
    "NemotronForCausalLM": GROUPED,
    "OPTForCausalLM": dict(
        TOKENS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
    ),
    "Olmo2ForCausalLM": GROUPED,
    "Olmo3ForCausalLM": dict(GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "OlmoForCausalLM": GROUPED,
    "OlmoeForCausalLM": EXPERTS,
    "OpenAIGPTLMHeadModel": dict(TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=32),
    "PersimmonForCausalLM": TEXT,
    "Phi3ForCausalLM": GROUPED,
    "PhiForCausalLM": GROUPED,
    "PhimoeForCausalLM": EXPERTS,
    "Qwen2ForCausalLM": GROUPED,
    "Qwen2MoeForCausalLM": dict(EXPERTS, shared_expert_intermediate_size=16),
    "Qwen3ForCausalLM": GROUPED,
    "Qwen3MoeForCausalLM": dict(EXPERTS, output_router_logits=True),
    "Qwen3NextForCausalLM": dict(
        EXPERTS,
        layer_types=["linear_attention", "full_attention"],
        shared_expert_intermediate_size=16,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    ),
    "RecurrentGemmaForCausalLM": dict(
        GROUPED, lru_width=32, attention_window_size=4, block_types=["recurrent", "attention"]
    ),
    "RwkvForCausalLM": RWKV,
    "SeedOssForCausalLM": GROUPED,
    "SmolLM3ForCausalLM": GROUPED,
    "StableLmForCausalLM": GROUPED,
    "Starcoder2ForCausalLM": dict(GROUPED, sliding_window=4),
    "XGLMForCausalLM": dict(
        TOKENS, d_model=32, num_layers=2, attention_heads=4, ffn_dim=48, max_position_embeddings=32
    ),
    "XLNetLMHeadModel": dict(TOKENS, d_model=32, n_layer=2, n_head=4, d_inner=48),
    "xLSTMForCausalLM": dict(TOKENS, hidden_size=64, num_hidden_layers=2, num_heads=4, chunk_size=4, qk_dim_factor=1.0),
    "ZambaForCausalLM": dict(
        TOKENS,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        num_key_value_heads=4,
        attention_head_dim=16,
        attention_hidden_size=64,
        layers_block_type=["mamba", "hybrid", "hybrid"],
        num_hidden_layers=3,
        mamba_d_state=4,
        mamba_dt_rank=4,
        n_mamba_heads=2,
        use_mamba_kernels=False,
    ),
    "Zamba2ForCausalLM": dict(
        GROUPED,
        layers_block_type=["mamba", "hybrid"],
        mamba_d_state=4,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_headdim=16,
        chunk_size=4,
    ),
}

CAUSAL_WITHOUT_MASK: Rows = {
    "ReformerModelWithLMHead": dict(REFORMER, attn_layers=["local", "local"], is_decoder=True),
}

EVERYTHING: Rows = {
    "BertForMaskedLM everything": dict(TEXT, attn_implementation="eager"),
    "GPT2LMHeadModel everything": dict(
        TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=32, attn_implementation="eager"
    ),
    "LlamaForCausalLM everything": dict(GROUPED, attn_implementation="eager"),
}

UNLABELLED: Rows = {
    "FSMTForConditionalGeneration": dict(SEQ2SEQ, langs=["en", "de"], src_vocab_size=64, tgt_vocab_size=64),
    "CanineModel": dict(TEXT, num_hash_buckets=16, downsampling_rate=2, local_transformer_stride=2),
    "ReformerModel lsh": dict(REFORMER, attn_layers=["lsh", "local"]),
    "T5EncoderModel": T5,
}

CLASSIFIERS: Rows = {
    "BertForSequenceClassification": dict(TEXT, num_labels=3),
    "GPT2ForSequenceClassification": dict(TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=32, num_labels=3),
    "LlamaForSequenceClassification": dict(GROUPED, num_labels=3),
    "RobertaForSequenceClassification": dict(TEXT, num_labels=3),
    "XLNetForSequenceClassification": dict(TOKENS, d_model=32, n_layer=2, n_head=4, d_inner=48, num_labels=3),
}

TRANSLATORS: Rows = {
    "BartForConditionalGeneration": SEQ2SEQ,
    "BigBirdPegasusForConditionalGeneration": dict(SEQ2SEQ, attention_type="original_full"),
    "BlenderbotForConditionalGeneration": SEQ2SEQ,
    "BlenderbotSmallForConditionalGeneration": SEQ2SEQ,
    "LEDForConditionalGeneration": dict(
        SEQ2SEQ, attention_window=4, max_encoder_position_embeddings=32, max_decoder_position_embeddings=32
    ),
    "LongT5ForConditionalGeneration": dict(T5, local_radius=3, global_block_size=4),
    "M2M100ForConditionalGeneration": SEQ2SEQ,
    "MBartForConditionalGeneration": SEQ2SEQ,
    "MT5ForConditionalGeneration": T5,
    "MarianMTModel": dict(SEQ2SEQ, decoder_vocab_size=64),
    "MvpForConditionalGeneration": SEQ2SEQ,
    "NllbMoeForConditionalGeneration": dict(SEQ2SEQ, num_experts=4, encoder_sparse_step=2, decoder_sparse_step=2),
    "PLBartForConditionalGeneration": SEQ2SEQ,
    "PegasusForConditionalGeneration": SEQ2SEQ,
    "PegasusXForConditionalGeneration": dict(SEQ2SEQ, block_size=4, num_global_tokens=2),
    "ProphetNetForConditionalGeneration": dict(
        TOKENS,
        hidden_size=32,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_encoder_attention_heads=4,
        num_decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=32,
        decoder_start_token_id=2,
    ),
    "SwitchTransformersForConditionalGeneration": dict(T5, num_experts=4, expert_capacity=8),
    "T5ForConditionalGeneration": T5,
    "T5ForConditionalGeneration gated": dict(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "UMT5ForConditionalGeneration": T5,
}

# The models that are also trained.
TRAINED = frozenset(
    (
        *("BartForConditionalGeneration", "BertForMaskedLM", "ConvNextV2ForImageClassification", "GPT2LMHeadModel"),
        *("LlamaForCausalLM", "MobileNetV2ForImageClassification", "RegNetForImageClassification"),
        *("ReformerForMaskedLM", "ReformerModelWithLMHead", "RwkvForCausalLM"),
        *("SwinForImageClassification", "T5ForConditionalGeneration", "ViTForImageClassification", "Wav2Vec2ForCTC"),
    )
)
# Trained in float64: batch norm over a few values amplifies rounding beyond what float32 can show.
WIDE = frozenset(("MobileNetV2ForImageClassification", "RegNetForImageClassification"))
# Trained once more after `gradient_checkpointing_enable()`.
CHECKPOINTED = frozenset(
    (
        *("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"),
        *("SwinForImageClassification", "T5ForConditionalGeneration"),
    )
)
# Eager torch itself has no gradients of them in evaluation mode.
WITHOUT_GRADIENTS = frozenset(("ReformerForMaskedLM", "ReformerModelWithLMHead", "RwkvForCausalLM", "xLSTMForCausalLM"))
# Their outputs are random: shapes are compared.
DRAWN = frozenset(("InformerForPrediction", "ReformerModel lsh"))

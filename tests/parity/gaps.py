"""Cases that do not pass yet, each with its reason; `docs/coverage.md` shows what they do instead."""

PACKED = "refused at capture: lengths given as numbers are not followed, so no packed sequence runs"
FLEX = "refused at capture: flex_attention's kernel options cannot be carried"
MASK = "refused at capture: it branches on a constant mask's values"
SCRIPT = "refused at capture: a scripted module's parameters do not survive the copy"
SPARSE = "takes a sparse tensor, which is refused"
ROUNDED = "WRONG beyond tolerance: about one bfloat16 rounding; not shown operator by operator"
GAPS: dict[str, dict[str, str]] = {
    "operators": {"sparse.sampled_addmm": SPARSE, "sparse.mm.reduce": SPARSE},
    "modules": {"nn.LPPool2d": "WRONG: a gradient is not finite where torch's is"},
    "hugging_face": {
        "NystromformerForMaskedLM landmarks": "refused at capture: two of its sizes disagree",
        "SEWDForCTC": "refused at capture: it branches on data",
    },
    "semantics": {
        "attention: TransformerDecoder": MASK,
        "attention: Transformer with generated masks": MASK,
        "attention: flex_attention, plain, scaled, with the logsumexp": FLEX,
        "attention: flex_attention with a score_mod by position": FLEX,
        "attention: flex_attention with a score_mod that hides the future": FLEX,
        "attention: flex_attention with a block mask": FLEX,
        "attention: flex_attention with grouped heads": FLEX,
        "attention: flex_attention with a table in its score_mod": FLEX,
        "attention: flex_attention with a block mask made in __init__, documents of one sequence": FLEX,
        "layers: Embedding with max_norm": "refused: it writes into its weight",
        "losses: CTC with zero_infinity where no path exists": (
            "WRONG: torch's gradient is NaN where no alignment exists, ours is not"
        ),
        "losses: AdaptiveLogSoftmaxWithLoss": "refused at capture: it branches on data",
        "losses: AdaptiveLogSoftmaxWithLoss, log_prob and predict": "refused at capture: it branches on data",
        "recurrent: packed LSTM": PACKED,
        "recurrent: packed LSTM, batch_first, not sorted": PACKED,
        "recurrent: packed LSTM, two ways, two layers, not sorted": PACKED,
        "recurrent: packed GRU, two ways": PACKED,
        "recurrent: packed RNN, a longer total_length": PACKED,
        "recurrent: packed GRU, state given, not sorted": PACKED,
        "recurrent: packed LSTM with proj_size": PACKED,
        "recurrent: lengths as a constant tensor": PACKED,
        "submodules: torch.jit.script'ed": SCRIPT,
        "submodules: torch.jit.trace'd": SCRIPT,
        "submodules: scripted, with a loop and an if on an option": SCRIPT,
        "submodules: a scripted BatchNorm in train": SCRIPT,
        "layers: stft and istft": "WRONG: a gradient is not finite where torch's is",
        "recurrent: pack_sequence and pad_sequence of a list": "refused at capture: the lengths are not followed",
        "recurrent: packed data is worked on between two layers": "refused at capture: the lengths are not followed",
        "draws: a generator of one's own": "a torch.Generator cannot be carried: draws come from `key`",
        "draws: random_ with two bounds, one, none": "random_ to the end of int64 is not lowered",
        "draws: torch.manual_seed before a draw": "WRONG: the seed is ignored without a word, draws come from `key`",
        "dtypes: autocast around convolution, pooling, batch norm and attention": ROUNDED,
        "dtypes: autocast switched off for an inner region": ROUNDED,
        "dtypes: integer indices and counting": "bincount has a size that depends on data",
        "nan gradients: det and slogdet of a singular matrix": (
            "WRONG: torch's gradient is 0 there, ours is the adjugate"
        ),
        "parametrized: spectral_norm parametrization of a weight that is used twice in one forward, train": "refused",
        "sharing: one buffer under two names, updated through one": "refused",
        "structures: a slice, an ellipsis and a range as options": "refused: a slice is no hashable option",
    },
}

"""Cases that do not pass yet, each with its reason; `docs/coverage.md` shows what they do instead."""

SPARSE = "takes a sparse tensor, which is refused"
GAPS: dict[str, dict[str, str]] = {
    "operators": {"sparse.sampled_addmm": SPARSE, "sparse.mm.reduce": SPARSE},
    "hugging_face": {
        "NystromformerForMaskedLM landmarks": "refused at capture: two of its sizes disagree",
        "SEWDForCTC": "refused at capture: it branches on data",
    },
}

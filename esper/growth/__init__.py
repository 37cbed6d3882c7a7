"""Floor 4: the growth verbs, optimiser-state migration and policies. No torch."""

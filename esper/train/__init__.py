"""Floor 4: the training job: data, step, loop, history, report. No torch."""

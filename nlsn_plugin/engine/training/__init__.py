"""Training that never loses a run: the loop, its batches and states, validation; and what mmengine's Runner lacks."""

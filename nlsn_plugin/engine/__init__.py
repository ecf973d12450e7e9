"""What the commands do, on the toolboxes' own parts: option files, training, benchmarks, evaluation, upscaling."""

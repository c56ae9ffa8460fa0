"""The paper's experiments and its open ablations: one resumable sweep each, over variants of the pipeline."""

"""Stage 2: the vision-language segmentation module (VLSM), its preprocessing, its weights and its segmenter."""

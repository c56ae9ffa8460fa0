"""Stage 1: an image with marks and an instruction -> proposals, by a local or a remote MLLM."""

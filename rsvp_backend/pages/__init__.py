"""The pages that people look at: one layout and style sheet; /traces and /play. The pages of /jobs are in `jobs`."""

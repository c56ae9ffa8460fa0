"""Mass pre-labelling: tasks of a Label Studio project, or of files, answered by overlapped stages; resumable."""

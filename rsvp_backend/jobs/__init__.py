"""Training in the background: a queue that the server fills, and one worker process that empties it."""

"""A worker process: the life of a connection, one file per step, and the engine that moves its bytes."""

"""What the trainer is made of: configuration, losses, step, sharding, checkpoints, metrics."""

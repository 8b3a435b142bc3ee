"""Operations: each reads a checkpoint and returns a plan."""

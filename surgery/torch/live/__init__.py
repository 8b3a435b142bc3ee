"""Operations on modules and optimizers in memory."""

"""A framework's file in which only what changed is another: what fits, what follows, what is refused."""

"""What a plan says of a model, how it is carried out, and the arithmetic of each tensor and optimizer slot."""

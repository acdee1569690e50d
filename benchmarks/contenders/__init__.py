"""Translation engines around the same model, each a small resident program: a line in, a line out."""

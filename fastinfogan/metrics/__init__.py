"""What a trained InfoGAN is worth, each number with the protocol that makes it mean something."""

"""Pure functions of tensors: the posterior, the losses, and the numbers that judge them."""

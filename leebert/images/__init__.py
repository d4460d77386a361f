"""Images: CIFAR-10 and CIFAR-100, and the residual networks of that size, for the same trainer as texts."""

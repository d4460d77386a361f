"""Images: CIFAR-10 and CIFAR-100 with small residual networks, trained by the same loop as texts."""

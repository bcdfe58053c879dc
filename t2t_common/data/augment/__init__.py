"""Augmentation of training images, on PIL images as timm does it."""

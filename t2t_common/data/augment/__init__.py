"""Augmentation of training images, on PIL images as in timm."""

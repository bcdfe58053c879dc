"""A small ResNet in PyTorch, with torchvision's names. Shapes: B batch, C channels, H W pixels, K classes."""

import torch
from torch import nn


class BasicBlock(nn.Module):
    def __init__(self, inside: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or inside != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inside, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(nn.Module):
    """Images (B, 3, H, W) to logits (B, K)."""

    def __init__(self, widths: tuple[int, ...] = (8, 16), depth: int = 2, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inside = widths[0]
        self.layers = nn.ModuleList()
        for i, planes in enumerate(widths):
            blocks = [BasicBlock(inside if j == 0 else planes, planes, 2 if i and j == 0 else 1) for j in range(depth)]
            self.layers.append(nn.Sequential(*blocks))
            inside = planes
        self.fc = nn.Linear(inside, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean(dim=(2, 3)))

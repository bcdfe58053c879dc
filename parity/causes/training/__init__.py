"""Causes of wrong gradients, optimiser steps and running statistics."""

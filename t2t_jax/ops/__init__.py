"""Optimized operations: attention softmax, products accumulated in float32."""

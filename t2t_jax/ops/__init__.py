"""Operations written for speed: attention softmax, products that accumulate in float32."""

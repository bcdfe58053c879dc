"""What a weight file says of itself: names, metadata, cards, published files and downloads."""

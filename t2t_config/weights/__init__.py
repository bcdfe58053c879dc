"""Weight files: tensor names, metadata, model cards, published files and downloads."""

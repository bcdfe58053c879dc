"""Both models run in one precision: every module's inputs and outputs, free or forced, and the gradients of a loss."""

"""Which input, call and output of one model answers to which of the other, and in what layout."""

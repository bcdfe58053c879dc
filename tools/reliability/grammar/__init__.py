"""Random pairs of models for `tools.reliability.pairs`: a tree of nodes, each of which builds its layer twice."""

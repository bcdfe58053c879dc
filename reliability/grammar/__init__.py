"""Random pairs of models for `reliability.pairs`: a tree of nodes, each of which builds its layer twice."""

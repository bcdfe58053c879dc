"""The suite against changed code: which mutants mean the same, and the order of the tests."""

"""For the tests of every room of `align`: the toys beside this file are on the path."""

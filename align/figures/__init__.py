"""Charts, sheets of pictures and intervals."""

"""What happens beside the loop: one hook a file."""

"""People's choices: pictures of a prompt side by side on a local page, and what was chosen as training data."""

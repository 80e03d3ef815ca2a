"""The commands of `align`: one file a command; the only room that prints and knows typer."""

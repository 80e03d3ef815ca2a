"""docs/reference/, told by the code itself: settings of configs, options of commands, recipes that exist."""

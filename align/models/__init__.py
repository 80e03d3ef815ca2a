"""Model families: one builder file a family; nothing else knows which family it is."""

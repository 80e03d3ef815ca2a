"""An adapter on its way to others: card, publish, upload, pull, export."""

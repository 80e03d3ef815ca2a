"""The embedded world: scenes, captions, a judge that is right, and small trained models in stock formats."""

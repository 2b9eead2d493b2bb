"""How a model's file comes here: what names it, its sources, and where it is kept."""

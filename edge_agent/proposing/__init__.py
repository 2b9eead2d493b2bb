"""Sources of draft tokens besides the draft model, and the grammar that they keep to."""

"""Draft tokens found in what was said before, without a draft model."""

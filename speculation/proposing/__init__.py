"""Draft tokens found in what was written before, without a draft model."""

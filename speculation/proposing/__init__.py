"""Draft tokens found in earlier text, without a draft model."""

"""A steady stream: tokens that came in one burst reach the client one after another."""

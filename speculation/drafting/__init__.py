"""The edge's end of one answer, without I/O."""

"""The edge's end of one answer: machine, session and policy, without I/O."""

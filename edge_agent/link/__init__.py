"""The link to the verifier: one HTTP/2 connection, and what survives its cuts."""

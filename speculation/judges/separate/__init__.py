"""The judge `separate`: rejection sampling, with the recovered token drawn at the edge.

The edge drew x from q; it is accepted with probability min(1, p(x)/q(x)). At the first
rejection p is sent to the edge, which draws the recovered token from max(0, p - q), normalised.
So the output has the distribution p (Leviathan et al. 2023, arXiv:2211.17192, theorem 1). Only
the head of p is sent whole; its tail is sent as samples, because to drop it would bias the
output. docs/exactness.md has the proof.
"""

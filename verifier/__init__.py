"""Judges draft tokens with the target in batches, and streams back the committed tokens."""

import picospec as picospec  # checks that no other package has a room's name

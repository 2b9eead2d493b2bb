"""What both ends of the link must agree on: messages, noise, laws, judging, the two session machines, pacing."""

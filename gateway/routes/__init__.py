"""The routes of the OpenAI API, one module each, and what they share."""

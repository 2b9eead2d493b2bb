"""What every route needs of HTTP: the body of a request, responses, and the connection."""

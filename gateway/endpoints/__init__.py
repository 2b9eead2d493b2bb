"""Each endpoint answers the clients of one API; generation, request, services and endpoint are
shared.

A request goes the same way at every endpoint. `NAME` stands for the endpoint's module, which
has a second one, `NAME_answer`, where its answers are long:

    gateway/routes.py         binds a path to `generate`, with the schema and `convert`
    generation.py             takes all the steps below, and is the place to begin reading
    generation.parse          reads the body as the endpoint's own request
    NAME.py                   converts it to a GenerationRequest (request.py)
    NAME.py                   `convert` returns that, and the maker of an Answer (endpoint.py)
    parameters.py             checks fields that not every engine serves
    gateway/prompt_reader.py  reads the prompt as tokens, in fair turns
    gateway/ports.py          defines an engine's Facts, the Job of a choice, and its Deltas
    gateway/output/           makes text, reasoning and calls of the tokens (stream.py)
    NAME.py, NAME_answer.py   the Answer writes these, and errors, in the endpoint's shape
"""

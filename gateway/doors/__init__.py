"""Each door answers the clients of one API; generation, door, request and services are shared.

A request goes the same way at every door. `NAME` stands for the door's module, which has a
second one, `NAME_answer`, where its answers are long:

    gateway/routes.py         binds a path to `generate`, with the door's schema and `convert`
    generation.py             takes all the steps below, and is the place to begin reading
    generation.parse          reads the body as the door's own request
    NAME.py                   converts it to a GenerationRequest (request.py)
    NAME.py                   `convert` returns that, and the maker of an Answer (door.py)
    request.py                checks fields that not every engine serves
    gateway/turns             reads the prompt as tokens, in fair turns
    gateway/ports.py          defines an engine's Facts, the Job of a choice, and its Deltas
    gateway/output/           makes text, reasoning and calls of the tokens (stream.py)
    NAME.py, NAME_answer.py   the Answer writes these, and errors, in the door's shape
"""

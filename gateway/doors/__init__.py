"""Each door, a folder, answers the clients of one API; the files beside the folders are shared.

A request goes the same way at every door. `NAME/` stands for the door's folder:

    gateway/routes.py   binds a path to `generate`, with the door's schema and `convert`
    generation.py             takes all the steps below, and is the place to begin reading
    body.py                   reads the body as the door's own request
    NAME/request.py           converts it to a GenerationRequest (request.py)
    NAME/answer.py            `convert` returns that, and the maker of an Answer (door.py)
    parameters.py             checks fields that not every engine serves
    gateway/tenants/reading   reads the prompt as tokens, in fair turns
    gateway/ports.py          defines an engine's Facts, the Job of a choice, and its Deltas
    gateway/output/           makes text, reasoning and calls of the tokens (choice_stream.py)
    NAME/answer.py            the Answer writes these, and errors, in the door's shape
"""

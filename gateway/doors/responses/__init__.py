"""POST /v1/responses, OpenAI's Responses API, and what one may do with a response.

items, tools    what a conversation consists of, as messages and functions of a chat
request         the body, as a chat
output, answer  what comes of it, as items and events
store           responses that are kept
handlers        the way from a request to its answer, and what may be asked of kept ones
"""

"""POST /v1/responses, OpenAI's Responses API, and what one may do with a response.

items, tools    what a conversation consists of, as messages and functions of a chat
request         the body, as a chat
output, answer  what comes of it, as items and events
store, kept     responses that are kept, and what may be asked of them
create          the way from a request to its answer
"""

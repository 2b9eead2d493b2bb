"""Serves POST /v1/responses, OpenAI's Responses API, and requests about kept responses.

items, tools    convert a conversation to the messages and tools of a chat
request         converts the body to a chat
output, answer  write the answer as items and events
store           keeps responses
handlers        lead from a request to its answer, and answer requests about kept responses
"""

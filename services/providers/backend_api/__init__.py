"""A ChatGPT-web style upstream: `/backend-api/conversation` and what belongs to it.

`upstream_base_url` switches it on. The way of one answer through the modules:

 1. provider.py  finds the model's family or GPT (names in gpts.py) and begins a `Completion`
 2. gpts.py      looks up what the request must repeat of a GPT
 3. files.py     opens the caller's attachments and uploads them
 4. request.py   makes the JSON body out of messages, uploads and family
 5. calls.py     sends every HTTP call: headers, calls a minute, errors, arkose tokens
 6. stream.py    posts the conversation and reads frames, by server-sent events or WebSocket
 7. upstream_events.py decodes them, deltas.py those that only say what changed
 8. events.py    makes our events of them, citations.py those of marks and links in the text
 9. files.py     looks up the addresses of pictures and files in the answer
10. provider.py  answers questions about GPT actions, ends, deletes or remembers the conversation
"""

from services.providers.backend_api.provider import BackendApi, build
from services.providers.backend_api.settings import BackendApiSettings

__all__ = ["SETTINGS", "BackendApi", "BackendApiSettings", "build"]

SETTINGS = BackendApiSettings

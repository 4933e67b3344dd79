"""An OpenAI-compatible server in front of a [`~md_trl.reasoner.MixedReasoner`] (`md-trl serve`, extra `serve`).

`chat_requests.py` reads requests, `worker.py` answers all of them together in one thread, `replies.py` writes the
replies, and `app.py` connects the three over HTTP. The protocol is described in `docs/serving.md`.
"""

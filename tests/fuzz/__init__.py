"""Requests as strangers send them, by a seed: through a real broker to a real `millstream serve`, and over HTTP to a real front end.

requests.py  rank requests for Kafka: good ones in every wire form, then changed
verdict.py   whether each was answered, or set aside with its bytes and its reason
run.py       a run: topics, a schema registry, a store with a past, the serving process, requests, verdict
openapi.py   a run over HTTP, from the served OpenAPI document, by Schemathesis
checks.py    what Schemathesis cannot know of our answers
"""

"""Reads a stream with httpx-sse: one line of JSON for each event. A stream that ends is opened
again after its last `retry`, with the last event id."""

import json
import sys
import time

import httpx
from httpx_sse import connect_sse

url, last_id, retry_ms = sys.argv[1], None, 1000
with httpx.Client(timeout=None) as client:
    while True:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        try:
            with connect_sse(client, "GET", url, headers=headers) as source:
                for event in source.iter_sse():
                    last_id = event.id or last_id
                    retry_ms = event.retry or retry_ms
                    data = json.loads(event.data)
                    print(json.dumps({"event": event.event, "data": data}), flush=True)
        except httpx.HTTPError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        time.sleep(retry_ms / 1000)

"""Reads a stream with requests and sseclient-py: one line of JSON for each event. A stream that
ends is opened again after its last `retry`, with the last event id."""

import json
import sys
import time

import requests
import sseclient

url, last_id, retry_ms = sys.argv[1], None, 1000
while True:
    headers = {"Accept": "text/event-stream"}
    if last_id:
        headers["Last-Event-ID"] = last_id
    try:
        response = requests.get(url, stream=True, headers=headers)
        for event in sseclient.SSEClient(response).events():
            last_id = event.id or last_id
            retry_ms = int(event.retry or retry_ms)
            data = json.loads(event.data)
            print(json.dumps({"event": event.event, "data": data}), flush=True)
    except requests.exceptions.RequestException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    time.sleep(retry_ms / 1000)

"""What schemathesis can not know of greendot by src/web/openapi.json alone."""

import json

import schemathesis
from hypothesis import strategies as st

USER_BYTES_MAX = 128


def is_user(text):
    """Its length is in bytes, which no schema can say."""
    return 1 <= len(text.encode()) <= USER_BYTES_MAX


users = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=128)
schemathesis.openapi.format("user-id", users.filter(is_user))


@schemathesis.check
def bad_items_are_named(ctx, response, case):
    """A list's item that is none is refused by itself, and the answer says so."""
    body = case.body
    if response.status_code != 200 or not isinstance(body, dict):
        return
    if case.operation.path == "/v1/streams/held":
        # It answers with places of the list, and a node never asks for a bad one.
        return
    for name in ("users", "watch", "add", "remove", "presence"):
        items = body.get(name)
        if not isinstance(items, list):
            continue
        bad = [item for item in items if not isinstance(item, (str, dict))]
        if bad:
            text = response.text
            if text.startswith("event: hello"):
                text = text.split("data: ", 1)[1].split("\n", 1)[0]
            assert json.loads(text).get("refused_total", 0) >= len(bad), text

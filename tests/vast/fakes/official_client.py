"""Runs the official client as its own environment has it: one call a line in JSON on standard input, one answer a line.

The base URL comes from VAST_URL and the key from VAST_API_KEY, as users of that client set them. Imports nothing of ours.
"""

import json
import sys

from vastai import VastAI


def main() -> None:
    client = VastAI()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"value": getattr(client, name)(**arguments)}
        except Exception as error:
            answer = {
                "error": type(error).__name__,
                "status": getattr(getattr(error, "response", None), "status_code", None),
            }
        print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    main()

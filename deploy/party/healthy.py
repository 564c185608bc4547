"""Ask this container's party whether it lives: python healthy.py PORT

For a container engine, which looks at the exit code. Nothing is verified: the answer says no more
than that the process answers, and whoever could forge it is on this host already.
"""

from __future__ import annotations

import http.client
import ssl
import sys


def main(port: int) -> int:
    """Return 0 where the party answers on 127.0.0.1, else 1."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=4, context=context)
    try:
        connection.request("GET", "/v2/health/live")
        return 0 if connection.getresponse().status == 200 else 1
    except (OSError, http.client.HTTPException) as error:
        print(f"no party answers on port {port}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

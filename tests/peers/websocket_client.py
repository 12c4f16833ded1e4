"""An independent WebSocket client: speaks with the echoing server through whatever is at the URL it is given.

Prints `fine` if all was as it should be; compression is agreed on end to end.
"""

import asyncio
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main(url):
    async with connect(url, subprotocols=["chat"], max_size=None) as connection:
        assert connection.subprotocol == "chat", connection.subprotocol
        await connection.send("hello")
        assert await connection.recv() == "hello"
        large = os.urandom(1 << 20)
        await connection.send(large)
        assert await connection.recv() == large
        await connection.send([b"in ", b"pieces"])
        assert await connection.recv() == b"in pieces"
        await (await connection.ping())
        await connection.send("close")
        try:
            await connection.recv()
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "as told"), closed
    print("fine")


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 30))

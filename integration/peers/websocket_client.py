"""A WebSocket client that sends texts, bytes and pings, hears them again, and says `ok`."""

import asyncio
import sys

import websockets

BIG = bytes(range(256)) * 4096


async def main():
    async with websockets.connect(sys.argv[1], max_size=None) as socket:
        for number in range(200):
            await socket.send("message %d" % number)
        for number in range(200):
            heard = await socket.recv()
            assert heard == "message %d" % number, heard
        await socket.send(BIG)
        assert await socket.recv() == BIG
        pong = await socket.ping()
        await asyncio.wait_for(pong, 10)
        await socket.send("bye")
        await asyncio.wait_for(socket.wait_closed(), 10)
        assert (socket.close_code, socket.close_reason) == (4001, "as you wish"), socket.close_code
    print("ok")


asyncio.run(asyncio.wait_for(main(), 60))

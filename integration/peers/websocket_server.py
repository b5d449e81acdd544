"""A WebSocket server that says back what it hears, and closes as it is asked to."""

import asyncio
import sys

import websockets


async def talk(socket):
    async for message in socket:
        if message == "bye":
            await socket.close(4001, "as you wish")
            return
        await socket.send(message)


async def main():
    async with websockets.serve(talk, "0.0.0.0", int(sys.argv[1]), max_size=None):
        await asyncio.Future()


asyncio.run(main())

import asyncio
import os

import numpy as np
import pytest
import tiercel
from kv import Cache, chain, layout


def test_blocks_and_bytes(endpoint):
    async def main():
        async with tiercel.AsyncClient(endpoint) as client:
            lay = layout()
            ch = chain(lay, 8)
            out, into = Cache(lay, 8, fill=1), Cache(lay, 8)
            assert await client.match_prefix(ch) == 0
            put = await client.put_blocks(ch, 0, 8, lay, out.k_ptrs, out.v_ptrs)
            assert all(r.ok for r in put)
            assert await client.match_prefix(ch) == 8
            got = await client.get_blocks(ch, 0, 8, lay, into.k_ptrs, into.v_ptrs)
            assert all(r.ok for r in got) and into == out
            assert len(await client.lookup(ch)) == 8

            key = os.urandom(16)
            assert await client.get(key) is None
            assert (await client.put(key, b"value")).ok
            assert await client.get(key) == b"value"
            assert await client.exists(key)
            room = bytearray(5)
            assert await client.get_into(key, room) == 5 and room == b"value"

    asyncio.run(main())


def test_many_at_once(endpoint):
    async def main():
        async with tiercel.AsyncClient(endpoint) as client:
            names = [os.urandom(16) for _ in range(200)]
            await asyncio.gather(*(client.put(k, k * 100) for k in names))
            values = await asyncio.gather(*(client.get(k) for k in names))
            assert values == [k * 100 for k in names]

    asyncio.run(main())


def test_the_loop_runs_on_while_bytes_move(endpoint):
    async def main():
        async with tiercel.AsyncClient(endpoint) as client:
            beats = 0

            async def beat():
                nonlocal beats
                while True:
                    beats += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(beat())
            await client.put(os.urandom(16), os.urandom(8 << 20), deadline_s=10)
            task.cancel()
            assert beats > 1

    asyncio.run(main())


def test_cancelling_leaves_a_client_that_works(endpoint):
    async def main():
        async with tiercel.AsyncClient(endpoint) as client:
            key = os.urandom(16)
            task = asyncio.create_task(client.put(key, os.urandom(8 << 20)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            other = os.urandom(16)
            assert (await client.put(other, b"v")).ok
            assert await client.get(other) == b"v"

    asyncio.run(main())


def test_addresses_and_existence(endpoint):
    async def main():
        async with tiercel.AsyncClient(endpoint) as client:
            names = [os.urandom(16) for _ in range(4)]
            out = np.random.default_rng(1).integers(0, 256, (4, 500), dtype=np.uint8)
            into = np.zeros_like(out)
            rows, sizes = np.arange(4, dtype=np.int64) * 500, np.full(4, 500, np.int64)
            put = await client.batch_put_ptrs(names, out.ctypes.data + rows, sizes)
            assert all(r.ok for r in put)
            got = await client.batch_get_into_ptrs(names, into.ctypes.data + rows, sizes)
            assert all(r.ok for r in got) and np.array_equal(out, into)
            assert await client.batch_exists([*names, os.urandom(16)]) == [True] * 4 + [False]

    asyncio.run(main())


def test_a_full_queue_answers_busy(endpoint):
    async def main():
        async with tiercel.AsyncClient(endpoint, max_bytes_in_flight=1 << 20) as client:
            results = await asyncio.gather(
                *(client.put(os.urandom(16), bytes(700_000), deadline_s=10) for _ in range(8))
            )
            assert {r.status for r in results} == {"OK", "BUSY"}
            assert (await client.put(os.urandom(16), b"v")).ok

    asyncio.run(main())


def test_closed(endpoint):
    async def main():
        client = await tiercel.AsyncClient(endpoint).connect()
        await client.close()
        await client.close()
        with pytest.raises(tiercel.ClosedError):
            await client.get("k")

    asyncio.run(main())

from services.logservice.tests.log_support import World, request_of, whole_tail, rows_of
async def test_smoke(world: World) -> None:
    c = await world.collection()
    n = await world.node()
    r = await n.append(request_of(c, ["a","b"], key="k", dimension=3))
    assert r.first_offset==1 and r.token.offset==2
    r = await n.append(request_of(c, ["a","b"], key="k", dimension=3))
    assert r.replayed
    assert rows_of(await whole_tail(n,c))==[(1,"a"),(2,"b")]
    n2 = await world.node()
    assert rows_of(await whole_tail(n2,c))==[(1,"a"),(2,"b")]
    print(n.counters)

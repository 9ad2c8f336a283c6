import time
def test_a(screen, score, data_file):
    t=time.time()
    o = score(data_file, "--json"); print(o, time.time()-t)
    t=time.time()
    o = screen(data_file, "--json"); print(o, time.time()-t)
    t=time.time()
    o = screen(data_file, "--json"); print(time.time()-t)
    t=time.time()
    o = screen(data_file); print(o.out, o.err, time.time()-t)
    assert 0

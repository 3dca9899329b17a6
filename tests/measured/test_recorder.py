def test_sample_is_clean(mini):
    m = mini.book().metadata["measured"]
    print(m, (mini.root/"recordings/machines.toml").read_text(), [c.source[:80] for c in mini.book().cells if c.cell_type=="code"])
    import os; print(os.listdir(mini.root))
    from measured import rerun
    import time; t=time.time()
    r = rerun.run_again("kv_cache/sample", mini.book_path, extra_path=mini.root)
    print(r, time.time()-t)

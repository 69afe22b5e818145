import sys
from pathlib import Path
from tests.support.ranks import run_ranks
def prog(rank, seconds, folder):
    import os
    from swtrace.series import RankGroup
    from swtrace.series.probe import probe, Extent
    from swtrace.settings import Settings
    out = probe(RankGroup.world(), Extent.up_to(16<<20, seconds=seconds), Settings(directory=Path(folder)))
    return out
if __name__ == "__main__":
    import tempfile, time
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        t=time.time()
        outs = run_ranks(int(sys.argv[1]), prog, float(sys.argv[2]), folder)
        print(time.time()-t, outs[0].left_out, outs[0].profile==outs[1].profile)
    for t in outs[0].profile.timings:
        s=t.seconds; c=t.compute_stretch
        print(f"{t.transport:5} {t.bytes>>10:6} KiB x{t.concurrent} {'comp' if t.computing else 'idle'} n={t.samples:4} p50 {s.p50*1e3:8.3f} ms [{s.p5*1e3:.3f} {s.p95*1e3:.3f}] {t.bytes_per_second/1e9:6.2f} GB/s", f"stretch {c.p50:.2f} [{c.p5:.2f} {c.p95:.2f}]" if c else "")
    for f in ("broadcast","pull"):
        for c in (1,2,4):
            for k in (False,True):
                x=outs[0].profile.fixed_and_rate(f,c,k); print(f,c,k,f"{x[0]*1e6:.0f} us {x[1]/1e9:.2f} GB/s")
    for d in outs[0].profile.directions: print(d)

"""Predict how a layout of speculative decoding serves a load: what a script needs, without torch.

    import pdv

    profile = pdv.Profile.load("results/demo-cpu/profile")
    workload = pdv.make_workload(50, pdv.FixedLength(64), pdv.FixedLength(48), concurrency=5)
    run = pdv.simulate(pdv.PDV, workload, profile, pdv.from_profile(profile))
    print(pdv.summary(run)["throughput_tokens_per_s"])
    print(pdv.decompose(run).mean())

The command line `pdv` measures the profile, serves live engines and draws.
"""

from calibrate.profile import Profile
from engines.policy.architecture import BASELINE, PD, PDV, Architecture, Lane, Stage, Step, load_architecture
from engines.record.metrics import decompose, summary
from engines.record.run import Run
from engines.workload.lengths import FixedLength, ListedLength, LogNormalLength, UniformLength
from engines.workload.traces import read_trace
from engines.workload.workload import make_workload
from experiments.compare.compare import compare
from sim.acceptance import Independent, Markov, PerPosition, PerRequestSpread, Tapes
from sim.acceptance_fits import from_profile
from sim.engine import simulate, summarise
from sim.fleet import simulate_fleet
from sim.routers import Fleet

__all__ = [
    "BASELINE", "PD", "PDV", "Architecture", "FixedLength", "Fleet", "Independent", "Lane", "ListedLength",
    "LogNormalLength", "Markov", "PerPosition", "PerRequestSpread", "Profile", "Run", "Stage", "Step", "Tapes",
    "UniformLength", "compare", "decompose", "from_profile", "load_architecture", "make_workload", "read_trace",
    "simulate", "simulate_fleet", "summarise", "summary",
]  # fmt: skip

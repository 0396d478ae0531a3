"""Goodput on real servers: the gateway beside a real Triton whose dynamic batcher is tuned for every trace.

    python -m loadtests.goodput_real            fifty minutes; writes loadtests/results/goodput_real.{json,png}
    python -m loadtests.goodput_real --quick    eight minutes, nothing is written; with --only stand-in, two

**Models** (`workloads`). One stands in for an accelerator: it sleeps as long as a batch takes there, one batch at a
time, in the gateway as a Python callable and in Triton in its Python backend. There is no accelerator here, and a model
that computes competes with the servers and the generator for two cores; that it sleeps leaves the policies to decide.
The others are real: a text encoder, the orientation of a page, and the recognition of a line of text, in ONNX Runtime,
the same file and the same ONNX Runtime on both sides. On a CPU a batch takes about as long as its items one by one, so
there is little that batching could gain, and the figures say what it costs. Every figure stands below the name of its
model.

**Traces** come from `batching.simulation.arrivals`, seeded, and are replayed alike to both by the open-loop generator
over HTTP JSON.

**Objectives** are 2, 3 and 5 times what one item takes. A reply counts if it is right and comes within the objective
and an allowance of its scheduled moment. The allowance is for the way there and back: the 90th percentile, on the
slower of both servers, of what is above the model's time while nobody else asks. Requests to the gateway carry as
their `timeout` what is left of that without the way to the gateway, as a caller sends it that knows when it must have
its answer.

**Triton** is tuned on traces of their own, for every kind of trace and objective, over delays and preferred sizes; once
as it is usually deployed, and once with requests that carry a `timeout`, a part of the objective that is tuned as well
(its queue policy rejects what waited longer; it knows no deadline that includes the model's time). Every point has all
sides in turns, in opposite order every other round, with the servers' CPU time beside it.

**Rejected.** Triton behind the gateway: another question (`loadtests.peers`). A bound of Triton's queue by count: the
timeout bounds it as well, and by what matters. One generator for both servers at once: they would share its cores.
"""

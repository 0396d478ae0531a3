"""The gateway and its peers, side by side on the null model: what each request costs, and whether goal 1 holds.

    python -m loadtests.peers [--only NAMES] [--clients 1,8,32,128] [--seconds 3] [--rounds 5] [--prepare]
                              [--perf-analyzer FOLDER] [--out loadtests/results/peers.json]

**What is compared.** `x`, FP32 [1, 16], goes in, `y` = 2x comes out; in every server NumPy computes it. The gateway
runs its whole path (`loadtests/configs/null.yaml`: routing, batching, decision, audit in a store, metrics), Triton its
Python backend with dynamic batching, and every peer its own default server. The load is that of
`loadtests.generator`, in one process; every reply is checked. A server without the Open Inference Protocol is sent the
same numbers as `{"x": [[...]]}`, which is less to read and to write.

**Comparisons.** One for each of HTTP JSON, HTTP binary and gRPC over the gateway, Triton and the bare servers (uvicorn,
grpc.aio) together; and one for each peer beside the gateway alone. The servers of a comparison all run throughout it,
and one at a time is asked. What the idle ones cost is measured first (`idle_cpu`, of a core); those above 0.02, such as
a batcher that spins, are paused by a signal while others are asked (`paused_while_idle`).

All share all cores with the generator, none is pinned: pinning to one core would cut off Triton's threads and Python
stub, and is not how anyone runs them. So where the machine has few cores, a rate is what server and generator reach
together; `generator_busy` is the generator's share of a core. Where it is near 1, the generator was the limit, and the
ratio of two rates is nearer to 1 than that of the servers; CPU per request is not touched by it.

**Rounds.** Every round asks each server once in each cell (a number of clients), forth in one round and back in the
next: A B B A over two rounds, so that drift of the machine hits all alike. Closed loop: `clients` connections that each
ask again when they are answered; that gives what a server can do, and hides stalls. After it an open loop, Poisson
arrivals at half of what the slowest of the comparison could do, for all the same: latencies there count from the moment
of the schedule. The first seconds of every server are not counted.

**Figures.** Replies a second, p50 and p99 in ms, and the CPU time of the server's whole process tree per right reply.
Ratios are of medians over rounds, with a bootstrap interval of 95 %. A goal *holds* or *fails* when all of its interval
does, over five rounds at least, and is *open* otherwise. A server that cannot be installed or started, or that stops
answering, is named with why.

**An outside load generator.** With `--perf-analyzer FOLDER` (where `perf_analyzer` lies; with the libraries and the
loader of a newer C library where this machine's is too old), the gateway and Triton are measured by it as well: HTTP
and gRPC, synchronous, asynchronous, and over system shared memory.

*Rejected:* to restart the server for every run (minutes a round, and nothing is warm); one comparison over all (the
memory and the idle work of fifteen servers); wrk (it checks no reply and speaks no gRPC).
"""

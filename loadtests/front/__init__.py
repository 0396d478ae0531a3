"""Pointsman in front of a Triton, beside that Triton alone, and beside a hop that only forwards bytes.

    python -m loadtests.front [--rounds 5] [--seconds 1.5] [--out loadtests/results/front.json]

One Triton serves a model that doubles its input; every side asks that one:

    triton         directly
    hop            through a process that forwards bytes between two sockets, on uvloop: what any proxy costs
    gateway-http   through Pointsman, which asks over HTTP
    gateway-grpc   through Pointsman, which asks over gRPC
    gateway-shm    through Pointsman, which asks over HTTP and moves tensors through shared memory
    regions        directly, and through Pointsman (gateway-regions), for tensors that lie in the client's own region
                   of shared memory; in the closed loop, wide tensors

with 16 numbers (64 bytes) and with 150,528 (602 KB, an image of 224 x 224), over HTTP with binary tensors and over
gRPC. They are asked in turns, A B C, C B A, by the closed loop of `loadtests.peers`, and by an open loop at half of
what the slowest can do. Goals, from the ratio of medians over rounds with its bootstrap interval:

    rate, gateway / triton            at least 0.95; with small tensors and many clients above 1, by batching
    p50 that the gateway adds         at most twice what the hop adds; of p99, three times
"""

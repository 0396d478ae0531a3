"""The load generator: many requests at stated moments, each reply checked, and its own limits told.

**Open loop.** Requests arrive as a Poisson process, whether or not earlier ones were answered. A latency counts from
the moment that the schedule says, not from when the request was written: a server that stalls for a second makes
everybody late who would have come in that second (Gil Tene's "coordinated omission"). A closed loop (`clients`) asks
again when it is answered; it says what a request costs at that concurrency, and hides stalls.

**The generator's own lateness** is how long after its moment a request was written: the generator was busy, or all its
connections were. Above `LATENESS_BOUND_S` at p99 the server did not see the load that is stated, and the report says
so, since figures from there are about the generator.

**Replies are checked.** No two requests under way in one process carry the same `x`, and a reply counts only if it is
twice the `x` of its own request.

Only the protocol's stubs are imported here, nothing of the gateway, so that any server can be asked.
"""

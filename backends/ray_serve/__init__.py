"""Models that Ray Serve places, scales, heals and rolls, reached from the gateway by handle.

    gateway                                        a replica, anywhere on the cluster
    Batcher ─► RayServe.infer ── Asked ─► Serve's router ─► ModelReplica.infer ─► Onnx, Python, ...
                    ▲                                              │
                    └───────────── Answered or Refused ────────────┘

**One call per batch.** Batches are formed at the gateway, by slack and across callers, as for every other backend; what
Serve offers for that (`@serve.batch`) is not used. A replica hosts one backend of ours in its process, as it is.

**Near first.** A replica of the gateway's own node is asked while it has room, and any other then.

**Tensors** are pickled by protocol 5: NumPy arrays travel as buffers, and from 100 kB on through the shared memory of
the node, where both sides read them in place. They are not writable then, as the contract allows.

**Deadlines** travel as seconds that are left, since clocks differ between nodes. At the deadline, or when the caller
leaves, the call is cancelled, and the backend in the replica stops what it can stop.

**Failures.** What the model says of a batch comes back as data (`Refused`) and is raised here again. A replica that
dies or leaves is `ReplicaFailed`; the batch is tried at another one, within its deadline and a budget. So it is where
one is silent for much longer than answers take (`backends.replicas.pacing`): it hangs, or a network is between it and
the gateway that lost its way. Whichever answers first is believed.

**Versions.** A replica knows a digest of what it was made of, and refuses calls that want another: while a model is
being replaced by its next version, an answer never comes from a model that the gateway's certificates are not about.
As long as some replicas are of the version that is wanted, these are looked for. Where none is found, as once a
deployment that somebody else looks after (`backend: ray_serve`) has been upgraded, the backend has failed: the gateway
passes it over, and opens it anew as the version that is there by then, which nothing has been proven of yet.

A version that may have no replica keeps what they have said of it (`kept`), so that a gateway's start wakes none.

**Pools** (`pooled`, `residence`, `routing`): models that are seldom asked share replicas, each of which loads what is
wanted there; a gateway knows which has what, and asks there.

**Scaling** (`scaling`): callers tell with every call how long its batch has waited and how many deadlines they have
missed; each replica sums that up, and Serve's controller asks a policy of ours about the sums.

Rejected: an exception for each refusal (Ray renders a traceback in the replica, and logs it, for what is an answer to
the caller's mistake); streaming calls (one more message each).
"""

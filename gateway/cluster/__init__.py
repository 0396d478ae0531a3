"""The gateway on Ray Serve: Serve places, health-checks, scales, rolls and drains it, and it listens for itself.

                       ┌─ node ──────────────────────────────────────────────────────────┐
    callers ──────────►│ :8000, :8001  replica of `gateway` ─┐                           │
    Prometheus, people │ :8002         (GatewayReplica)      ├─ handle ─► model replicas  │
                       │ :8000, :8001  replica of `gateway` ─┘   (ModelReplica, anywhere) │
                       │ :8003                                                           │
                       └─────────────────────────────────────────────────────────────────┘

**A replica** (`replica.GatewayReplica`) is the ordinary composition with the ordinary listeners, on the event loop that
Serve gives it. The replicas of a node share the ports of the data plane (`SO_REUSEPORT`); between nodes a balancer
chooses, as in front of any service. Each has a control port of its own, the first free one from `control_port` on: its
metrics are its own, and inbox and API show the same store. Whoever had `control_port` itself may leave; another replica
of the node listens there then as well. `cluster: {targets: FOLDER}` tells Prometheus which there
are (`targets`). Rejected: Serve's own proxies in front, which are slower by far (`loadtests.ray_serve`); they work
(`replica.IngressReplica`).

**What Serve does by what the replica offers it.**

- *Start*: `__init__` returns when both listeners answer. Under an upgrade the next replica starts first
  (`max_surge_percent`), then the old one leaves.
- *Health*: `check_health` runs on the same loop as everything else. One that hangs does not answer, one whose listeners
  have ended raises: Serve replaces both. A gateway that is not ready since servers of models are down is healthy: the
  next one would find them down too, and other routes would have lost the one that they have.
- *End*: `__del__` closes the listeners first; then what was accepted finishes, as on SIGTERM. Serve gives it as long as
  that may take (`graceful_shutdown_timeout_s`), and kills it then.

**Models** whose configuration says `serve` are applications of their own, one for each version (`backends.ray_serve`;
`apart` tells how one replaces another); those of a pool are one together (`pools`). A replica that finds other files
than were deployed does not serve them (`made_of`). Other models are in the gateway's process, once in each.

**What is told apart.** As between workers (`gateway.workers`), but for the supervisor: every replica delivers webhooks,
which does no harm, and whoever has the lease of it does the store's upkeep (`Store.lead`). Each judges canaries by what
it has seen.

`application` builds it from a configuration; `apart` deploys its models, and `rollout` waits for them; `versions` has
configurations kept by number, and rolled out one at a time; `launch` is `pointsman cluster`; `manifest` writes files
for `serve deploy` and Kubernetes.
"""

"""Several processes behind the data plane's two ports, and one before them that looks after them.

                      ┌── link: settings, "drain", "hurry"; ready, failed, last words ──┐
    supervisor ───────┤                                                                 ├── worker 0: :8000, :8001
    :8002, the store  └── questions: counts, state; requests of the control port ───────┘
                      ┌── the same                                                      ─── worker 1: :8000, :8001

**Why processes.** Python runs one thread at a time: one process of the gateway uses one core, whatever its batches do
on others. `SO_REUSEPORT` lets the kernel spread connections over processes that listen on one port, without a lock or a
proxy between them. A client with one connection has one worker.

**A worker** (`worker`) is the ordinary composition with the ordinary listeners: its own models, batchers and a place of
its own among the store's writers, so with N workers every model is loaded N times, and batches form among the callers
of one worker. It is a fresh interpreter, since what gRPC keeps does not survive a fork, and takes its settings from its
supervisor, so that one that is started again next week serves what its siblings serve.

**The supervisor** (`supervisor`) opens no models. It holds the ports (`ports`), starts workers and starts them again
(`crew`), and has the control port to itself: reviews and pages it answers from the store, for counts (`metrics`) and
states it asks every worker, and what else `/v1` offers it hands on to one of them. It alone does the store's upkeep.

**What is told apart.** One idempotency key is one answer over all workers, since keys are in the store: a duplicate at
another worker looks for its first request every 0.1 s. A decision at the supervisor ends a long poll at a worker within
a second. An answer's id may reach another worker before the answer does, so the store looks again for a moment before
it says that there is none. Statistics of the Open Inference Protocol are the one worker's that is asked.

**Ends.** A worker that dies is started again, after a while that grows; its leases are reopened as those of any dead
process are. One whose event loop hangs serves nobody, and its share of new connections waits: when it has left
questions unanswered for some 15 s it is killed, and so started again. A worker whose link ends has no supervisor any
more, and drains: nothing is left behind that serves.

Rejected: forking (see above); one process that accepts and passes sockets on (a second process for every connection's
beginning, and one that must not die); listening sockets made by the supervisor and inherited (a socket that it holds
open goes on queueing connections for a worker that is dead); parent-death signals (Linux's are about the thread that
started the process, and leave no time to drain); workers that read the file again (it may have been edited since).
"""

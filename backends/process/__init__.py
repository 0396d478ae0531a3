"""A Python function as a model in processes of its own: `backend: python` with `process: true`.

    backend.py    the Backend: checks a batch, claims a worker, has it called
    pool.py       which workers there are, who waits for one, who is replaced and when
    restarts.py   how long a replacement waits
    child.py      one worker process as the gateway sees it: its states, its calls, its end, and whose fault that is
    output.py     what it writes, as lines in the log
    messages.py   what the two tell each other
    memory.py     the tensors, in memory that both map
    worker.py     the process itself
    function.py   the function: found, called, held to its signature; also for calls in this process

**The way of a call.** The inputs are copied once, into the worker's region; a packet says where they lie; the function
reads them in place. The worker copies its outputs behind them and answers where these lie; the gateway checks that, and
copies them out. The region is then free for the next call. Copies of more than 1 MiB are made on threads.

**Trust.** The worker runs somebody else's code. It cannot make the gateway run code (nothing is unpickled), read beside
a region (every window is checked), fault on one (regions are sealed), take another call's answer (fences), hold up the
event loop (its socket is never waited for, its output is metered), or outlive the gateway.

**Rejected.** Handing outputs out as views of a fresh region: saves a copy, and the worker could change an answer after
it was checked; the pages of a fresh region cost as much as the copy. `multiprocessing` and `ProcessPoolExecutor`: they
unpickle what a child sends, a pool whose child dies is broken for good, and its calls cannot be given up. Forking, or a
fork server: threads and gRPC do not survive a fork of the gateway, and a server to fork from is one more process to
watch, for starts that happen seldom. A regular POSIX shared memory object: it has a name that outlives a crash.
"""

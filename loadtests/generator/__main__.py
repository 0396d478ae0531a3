"""Load on a server of the Open Inference Protocol, and what it made of it.

    python -m loadtests.generator --url http://127.0.0.1:8000 --rate 1000 --seconds 10 --processes 2 --pid 4711
    python -m loadtests.generator --url grpc://127.0.0.1:8001 --clients 32

The model doubles `x`, FP32 [16] (or of another --width), to `y`, as `dbl` of `loadtests/configs/null.yaml` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from loadtests.generator.load import Plan
from loadtests.generator.report import NotStarted, generate


def main() -> int:
    """Run, print the report, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="http://HOST:PORT or grpc://HOST:PORT")
    parser.add_argument("--model", default="dbl")
    loop = parser.add_mutually_exclusive_group(required=True)
    loop.add_argument("--rate", type=float, help="open loop: requests a second, of all processes")
    loop.add_argument("--clients", type=int, help="closed loop: each asks again when it is answered")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--connections", type=int, default=128, help="open loop: under way at once, of each process")
    parser.add_argument("--path", help="HTTP: where to post, instead of /v2/models/MODEL/infer")
    parser.add_argument("--width", type=int, help="numbers in a row, instead of 16")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--binary", action="store_true", help="HTTP: binary tensors instead of JSON")
    form.add_argument("--rows", action="store_true", help='HTTP: {"x": [[...]]} instead of the protocol')
    parser.add_argument("--shared", action="store_true", help="tensors in shared memory, which the server is told of")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pid", type=int, help="the server's process, to tell its CPU time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the report goes as well")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    out, pid = given.pop("json", None), given.pop("pid", None)
    if not given["url"].startswith(("http://", "grpc://")):
        parser.error("--url is http://HOST:PORT or grpc://HOST:PORT")
    try:
        report = generate(Plan(**given), pid)
    except NotStarted as error:
        print(error, file=sys.stderr)
        return 1
    text = json.dumps(report.to_json(), indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

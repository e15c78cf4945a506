"""Runs command lines one after another, apart from test_fuzz.py: a crash must not end the tests.

Reads one JSON object a line: {"argv": [...], "stdin": a path or null}; answers each with one line.
"""

import contextlib
import io
import json
import os
import sys
import time
import traceback

from speech import listen


def run(argv: list[str], stdin: str | None) -> dict[str, object]:
    """Exit status, standard output, standard error and seconds of processor time of one call of the program."""
    output, errors, begun_s = io.StringIO(), io.StringIO(), time.process_time()
    with open(stdin or os.devnull) as source, contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        sys.stdin = source
        try:
            status = listen.main(argv)
        except SystemExit as end:
            status = end.code
        except BaseException:
            status = "traceback"
            errors.write(traceback.format_exc())
    seconds = time.process_time() - begun_s
    return {"status": status, "output": output.getvalue(), "errors": errors.getvalue(), "seconds": seconds}


if __name__ == "__main__":
    requests = sys.stdin
    for line in requests:
        case = json.loads(line)
        answer = run(case["argv"], case["stdin"])
        print(json.dumps(answer), file=sys.__stdout__, flush=True)

"""The llama.cpp child: ``python -m peer.host.engines.llamacpp_server OPTIONS_JSON``.

It serves one model on a unix socket and writes one line to its log when it is ready or has failed
(``launch.ChildReport``). SIGTERM keeps its default action, to end at once: the server's own
shutdown waits up to 30 s for open streams and has nothing to save.
"""

import os
import sys
import threading

import msgspec
import xllamacpp

from peer.host.engines.launch import SSE_PING_S, ChildOptions, ChildReport, report_line

_HTTP_THREADS_SPARE_COUNT = 4  # beside one per slot: health checks, counts
# A client that hangs up is noticed between two batches only: 2,048, the default, went on computing
# a dead prompt for 9 s on one core; 64 stop within 1 s even there (32 cost a third of the speed).
_PREFILL_BATCH_TOKENS = 64


def main() -> int:
    """Serve until the parent is gone; return the exit status."""
    options = msgspec.json.decode(sys.argv[1], type=ChildOptions)
    try:
        parameters = _parameters(options)
        server = xllamacpp.Server(parameters)
    except (RuntimeError, OSError, ValueError) as error:
        _report(ChildReport(error=str(error)[:500] or "llama.cpp did not start"))
        return 1
    ready = ChildReport(
        context_tokens=options.context_tokens,
        threads=parameters.cpuparams.n_threads,
        version=str(xllamacpp.__version__),
    )
    _report(ready)
    threading.Event().wait()  # until a signal ends the process
    del server
    return 0


def _parameters(options: ChildOptions) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.model
    parameters.model_alias = {str(options.model_id)}  # /v1/models would name the file's path
    parameters.hostnames = [options.socket]
    parameters.n_parallel = options.slots
    parameters.n_ctx = options.slots * options.context_tokens
    parameters.n_batch = parameters.n_ubatch = max(_PREFILL_BATCH_TOKENS, options.slots)
    parameters.kv_unified = False  # each request has its own context
    parameters.n_threads_http = options.slots + _HTTP_THREADS_SPARE_COUNT
    parameters.sse_ping_interval = SSE_PING_S
    parameters.cpuparams.n_threads = options.threads or max(1, (os.cpu_count() or 2) // 2)
    parameters.cpuparams.poll = 0
    parameters.endpoint_slots = False  # it would show other clients' prompts
    parameters.endpoint_props = False
    parameters.endpoint_metrics = True
    parameters.ui = False
    if options.template:
        parameters.chat_template = options.template
    return parameters


def _report(report: ChildReport) -> None:
    os.write(1, report_line(report).encode())


if __name__ == "__main__":
    sys.exit(main())

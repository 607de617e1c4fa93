from bench.figures import Sample


def sample(**changes: object) -> Sample:
    fields: dict[str, object] = {
        "window_s": 2.0,
        "requests": 200,
        "tokens": 20_000,
        "reads": 10_000,
        "latency_us": {},
        "ttft_us": {4000: 1},
        "gap_us": {},
        "relay_us": {1000: 1},
        "errors": {},
        "examples": {},
        "reconnects": 0,
        "load_cores": 0.2,
        "other_cores": 0.1,
        "disturbers": {},
        "cpu_s": {"gateway": 0.4, "host": 0.6},
    }
    fields |= changes
    fields.setdefault("rss_kib", dict.fromkeys(fields["cpu_s"], 102_400))
    return Sample(**fields)

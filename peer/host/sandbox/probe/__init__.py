"""Tries to get out: ``python -m peer.host.sandbox.probe TARGETS_JSON REPORT_FILE``.

Each attempt does what an intruder in an engine would try next. It either gets somewhere (it
"escaped", with what it got) or not. Natively nearly all of them get somewhere, which is how a test
knows that they can fail. None does harm: what opens is closed, what is mounted is unmounted, what
is forked ends, and nothing is written to a device or a kernel setting.

It runs under whichever Python the engine has, so it needs the standard library only.
"""

"""What to ask for a million tokens, and what that earns. A core: values only.

Nothing here is a promise: speed and power are estimates, and whether anybody asks is the market's.
The suggestion covers the electricity of a machine that does nothing else, twice; a prompt's token
costs a quarter of an answer's, as prompts are read many tokens at a time.
"""

import math
from dataclasses import dataclass

MARGIN = 2  # times the electricity: half of it pays for wear and for hours without requests
OUT_PER_IN = 4
SIGNIFICANT_DIGITS = 2
CPU_WATTS_PER_CORE = 12  # what desktop processors draw under load, divided by their cores
CPU_WATTS_REST = 30  # board, memory, fans
GPU_LOAD_PERCENT = 80  # of its limit: answering is bound by memory, not by arithmetic
KWH_MICROS_DEFAULT = 250_000
SECONDS_PER_HOUR = 3600
TOKENS_PER_MTOK = 1_000_000
_MILLIWATTS_PER_WATT = 1000
_WATTS_PER_KILOWATT = 1000


@dataclass(frozen=True, slots=True)
class Running:
    """A machine that answers without a pause.

    Attributes:
        tokens_per_s: Of answers, one request at a time.
        watts: What it draws meanwhile.
        micros_per_kwh: What electricity costs, in micro-dollars.
    """

    tokens_per_s: float
    watts: int
    micros_per_kwh: int

    @property
    def electricity_micros_per_hour(self) -> int:
        """What an hour's electricity costs, rounded up."""
        return -(-self.watts * self.micros_per_kwh // _WATTS_PER_KILOWATT)

    @property
    def electricity_micros_per_mtok(self) -> int:
        """What the electricity of a million tokens of answer costs, rounded up."""
        tokens_per_hour = self.tokens_per_s * SECONDS_PER_HOUR
        return math.ceil(self.electricity_micros_per_hour * TOKENS_PER_MTOK / tokens_per_hour)

    def earned_micros_per_hour(self, out_micros_per_mtok: int) -> int:
        """Return what an hour of answers earns, before fee and electricity, rounded down."""
        tokens_per_hour = int(self.tokens_per_s * SECONDS_PER_HOUR)
        return tokens_per_hour * out_micros_per_mtok // TOKENS_PER_MTOK


def suggested_price(running: Running) -> tuple[int, int]:
    """Return what to ask for a million tokens of prompt and of answer, in micro-dollars."""
    out_micros = rounded_up(running.electricity_micros_per_mtok * MARGIN)
    return rounded_up(-(-out_micros // OUT_PER_IN)), out_micros


def rounded_up(micros: int) -> int:
    """Return the next amount with two significant digits: a price that people can say."""
    if micros < 10**SIGNIFICANT_DIGITS:
        return micros
    step = int(10 ** (len(str(micros)) - SIGNIFICANT_DIGITS))
    return -(-micros // step) * step


def cpu_watts(cores_count: int) -> int:
    """Return an estimate of what a machine draws while its processor works."""
    return CPU_WATTS_REST + CPU_WATTS_PER_CORE * cores_count


def gpu_watts(power_limit_mw: int) -> int:
    """Return an estimate of what a machine draws while its GPUs answer.

    Args:
        power_limit_mw: Of all that work, together.
    """
    return CPU_WATTS_REST + power_limit_mw * GPU_LOAD_PERCENT // 100 // _MILLIWATTS_PER_WATT

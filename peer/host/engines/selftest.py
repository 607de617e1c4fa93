"""What an engine really does, tried before anything is announced of it.

``TestedEngine`` stands before an engine and looks like one. Until each model has been tried it is
"loading"; then it shows the models that can be served, each with the flags that passed and with
what is missing, so that requests for the missing are refused. A model that does not even stream,
count and keep within ``max_tokens`` is not shown at all, and ``detail`` says why.

An engine of ours is tried once for each of its models: when it comes back after a crash, what was
found still holds. Somebody else's server may come back as another one, and is tried again.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import msgspec
import trio

from p2p.errors import ErrorCode
from p2p.session.events import ErrorInfo
from peer.host.engines.abilities import MINIMUM, Ability, features_of
from peer.host.engines.api import (
    NOT_RUNNING,
    Engine,
    EngineCall,
    EngineFailure,
    EngineLoad,
    EngineModel,
    EngineSink,
    EngineState,
    PromptCounted,
)
from peer.host.engines.events import AnswerEvent, EngineGarbageError, EventSplitter
from peer.host.engines.parameters import TABLES, EngineLimits, PreparedRequest, prepare_request
from peer.host.engines.trials import (
    FIRST,
    LONG_TOKENS,
    Answer,
    Trial,
    TrialResult,
    Verdict,
    judge_stream,
    judge_usage,
    read_answer,
    trial_of_max_tokens,
    trials_after,
)

_LOG = logging.getLogger(__name__)

FIRST_S_MAX = 180.0  # a first request compiles and warms up: 22 s seen on vLLM with a free CPU
TRIAL_S_MAX = 60.0
TEST_S_MAX = 420.0  # of one model; what was not tried by then is not promised
AGAIN_S = 60.0  # so long after a failure of the minimum it is tried once more
ANSWER_BYTES_MAX = 256 * 1024
BROKEN_S_MAX = 1.0  # from an answer that breaks off until its engine is seen to be gone
GONE_S_MAX = 8.0  # the same for one that must be killed first
_BROKEN = frozenset((ErrorCode.ENGINE_FAILED, ErrorCode.ENGINE_TIMEOUT))
_GONE = "the engine ended while it was tried"


class SelfTest(msgspec.Struct, frozen=True):
    """What the trials of one model showed; a value of the control API.

    Attributes:
        announced: Whether the model may be on offer.
        tokens: What the trials cost, in completion tokens.
    """

    model_id: str
    announced: bool
    results: list[TrialResult]
    tokens: int
    took_ms: int

    def passed(self) -> frozenset[Ability]:
        """Return what the engine can do."""
        return frozenset(
            Ability(each.ability) for each in self.results if each.verdict is Verdict.PASSED
        )

    def line(self) -> str:
        """Return it as a line for the log."""
        good = [each.ability for each in self.results if each.verdict is Verdict.PASSED]
        bad = [
            f"{each.ability} ({each.detail})"
            for each in self.results
            if each.verdict is not Verdict.PASSED
        ]
        cost = f"{self.tokens} tokens, {self.took_ms / 1000:.1f} s"
        missing = f"; not: {', '.join(bad)}" if bad else ""
        return f"self-test of {self.model_id} ({cost}): {', '.join(good) or 'nothing'}{missing}"


class _EngineGoneError(Exception):
    """Raised when the engine ended in the middle of a trial."""


class _TrialFailedError(Exception):
    """Raised when an engine gave no answer that could be judged; says why."""


class _Sink:
    """Takes one answer of a trial."""

    def __init__(self) -> None:
        self.events: list[AnswerEvent] = []
        self.failure: EngineFailure | None = None
        self.garbage = ""
        self.over = trio.Event()
        self._bytes = 0
        self._splitter = EventSplitter()

    def received(self, data: bytes) -> None:
        self._bytes += len(data)
        try:
            self.events += self._splitter.feed(data)
        except EngineGarbageError as error:
            self.garbage = str(error)
        if self._bytes > ANSWER_BYTES_MAX:
            self.garbage = f"more than {ANSWER_BYTES_MAX} bytes for an answer of a few tokens"
        if self.garbage:
            self.over.set()

    def ended(self) -> None:
        self.over.set()

    def failed(self, failure: EngineFailure) -> None:
        self.failure = failure
        self.over.set()


class Examiner:
    """Asks one engine what the trials want to know."""

    def __init__(
        self, engine: Engine, table: str, wait_left: Callable[[], Awaitable[None]]
    ) -> None:
        """Make one; nothing is asked yet.

        Args:
            engine: What is tried.
            table: Its parameter table.
            wait_left: Returns once the engine is not ready any more.
        """
        self._engine = engine
        self._table = table
        self._wait_left = wait_left

    async def ask(self, model: EngineModel, fields: Mapping[str, object], limit_s: float) -> Answer:
        """Return the answer to a request that is prepared as a client's is.

        Raises:
            _TrialFailedError: If there was none, and the engine is still there.
            _EngineGoneError: If the engine is not.
        """
        body = msgspec.json.encode({"model": model.model_id, **fields})
        prepared = prepare_request(self._table, body, EngineLimits(model.name, LONG_TOKENS))
        if isinstance(prepared, ErrorInfo):
            raise _TrialFailedError(prepared.message)
        sink = await self._run(prepared, limit_s)
        if sink.failure is not None:
            await self._look_if_gone(sink.failure)
            raise _TrialFailedError(sink.failure.message)
        if sink.garbage:
            raise _TrialFailedError(sink.garbage)
        if any(event.error for event in sink.events):
            raise _TrialFailedError("the engine reported an error in its answer")
        try:
            return read_answer(sink.events)
        except msgspec.DecodeError as error:
            raise _TrialFailedError(f"a chunk is not shaped as OpenAI's are: {error}") from error

    async def _run(self, prepared: PreparedRequest, limit_s: float) -> _Sink:
        sink = _Sink()
        call = self._engine.start(prepared.body, sink)
        try:
            with trio.move_on_after(limit_s):
                await sink.over.wait()
        finally:  # also when the time of all trials is over: nothing may go on computing for nobody
            if sink.garbage or not sink.over.is_set():
                call.abort()
        if not sink.over.is_set():
            raise _TrialFailedError(f"no answer within {limit_s:g} s")
        return sink

    async def _look_if_gone(self, failure: EngineFailure) -> None:
        """Wait until an engine that broke off shows that it is gone, if it is.

        Raises:
            _EngineGoneError: If it is.
        """
        wait_s = GONE_S_MAX if failure.is_hang or failure is NOT_RUNNING else BROKEN_S_MAX
        if failure.code not in _BROKEN or "status" in failure.message:
            return  # it answered, so it is there
        with trio.move_on_after(wait_s):
            await self._wait_left()
            raise _EngineGoneError


class _Findings:
    """What is known of one model so far; outlives a crash of the engine in a trial."""

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.results: dict[Ability, TrialResult] = {}
        self.first: Answer | None = None
        self.tokens = 0
        self.took_s = 0.0
        self.gone_first = 0

    def note(self, ability: Ability, problem: str, verdict: Verdict = Verdict.FAILED) -> None:
        """Keep the result of one trial: passed, if nothing is wrong."""
        kept = verdict if problem else Verdict.PASSED
        self.results[ability] = TrialResult(ability.value, kept, problem[:300])

    def self_test(self) -> SelfTest:
        """Return it as a value."""
        results = [self.results[each] for each in Ability if each in self.results]
        passed = {each.ability for each in results if each.verdict is Verdict.PASSED}
        announced = {each.value for each in MINIMUM} <= passed
        took_ms = round(1000 * self.took_s)
        return SelfTest(self.model.model_id, announced, results, self.tokens, took_ms)


FIRST_GONE_MAX = 3  # so often an engine may die of its first request before we say it can't


class TestedEngine:
    """An engine that shows only what passed. Run ``run`` in a nursery instead of the engine's."""

    __test__ = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed: Callable[[], None] = lambda: None
        self._wake = trio.Event()
        self._left = trio.Event()  # set while the engine is not ready
        self._is_ours = False
        self._findings: dict[EngineModel, _Findings] = {}
        self._tests: dict[EngineModel, SelfTest] = {}
        # What is asked for each request goes to the engine itself.
        self.start: Callable[[bytes, EngineSink], EngineCall] = engine.start
        self.count_prompt: Callable[[bytes, PromptCounted], None] = engine.count_prompt
        self.state = EngineState.STARTING
        self.detail = engine.detail
        self.models: tuple[EngineModel, ...] = ()
        engine.on_change(self._engine_changed)

    @property
    def parameter_table(self) -> str:
        """The engine's."""
        return self._engine.parameter_table

    @property
    def loaded_percent(self) -> int:
        """The engine's."""
        return self._engine.loaded_percent

    @property
    def load(self) -> EngineLoad | None:
        """The engine's."""
        return self._engine.load

    @property
    def pid(self) -> int | None:
        """The engine's."""
        return self._engine.pid

    @property
    def restarts(self) -> int:
        """The engine's."""
        return self._engine.restarts

    @property
    def self_tests(self) -> list[SelfTest]:
        """What was found of the models that the engine has now."""
        return [self._tests[each] for each in self._engine.models if each in self._tests]

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever what it shows changed."""
        self._changed = changed

    async def run(self) -> None:
        """Keep the engine going, and try it whenever there is something new, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._engine.run)
            while True:
                wake = self._wake = trio.Event()
                await self._examine_all()
                self._show()
                wait_s = AGAIN_S if self._failed() else float("inf")
                with trio.move_on_after(wait_s) as scope:
                    await wake.wait()
                if scope.cancelled_caught:
                    self._forget_failed()

    # -- what is shown -------------------------------------------------------------------------

    def _engine_changed(self) -> None:
        if self._engine.state is EngineState.READY:
            self._left = trio.Event()
            self._is_ours = self._engine.pid is not None
        else:
            self._left.set()
            if not self._is_ours:
                self._tests.clear()  # it may come back as another one
        self._show()
        self._wake.set()

    def _show(self) -> None:
        """Show the engine's state, seen through what was found."""
        engine = self._engine
        state, detail, models = engine.state, engine.detail, engine.models
        shown: tuple[EngineModel, ...] = ()
        if state is EngineState.READY:
            tests = {each: self._tests[each] for each in models if each in self._tests}
            shown = tuple(self._promise(each) for each in tests if tests[each].announced)
            if failed := [test for test in tests.values() if not test.announced]:
                detail = "; ".join(_why(each) for each in failed)
            untried = [each for each in models if each not in tests]
            if not shown and untried:
                state = EngineState.LOADING
                detail = f"trying what {untried[0].model_id} can do"
            elif not shown and failed:
                state = EngineState.FAILED
        is_new = (state, detail, shown) != (self.state, self.detail, self.models)
        self.state, self.detail, self.models = state, detail, shown
        if is_new:
            self._changed()

    def _failed(self) -> list[SelfTest]:
        return [each for each in self.self_tests if not each.announced]

    def _forget_failed(self) -> None:
        """Let those that failed the minimum be tried again."""
        for model in [each for each, test in self._tests.items() if not test.announced]:
            del self._tests[model]

    def _promise(self, model: EngineModel) -> EngineModel:
        """Return a model with what passed, and with what requests can't have."""
        passed = self._tests[model].passed()
        missing = frozenset(Ability) - passed
        return replace(model, features=features_of(passed), missing=missing)

    # -- trying --------------------------------------------------------------------------------

    async def _examine_all(self) -> None:
        while self._engine.state is EngineState.READY:
            untried = [each for each in self._engine.models if each not in self._tests]
            if not untried:
                self._forget_old()
                return
            self._show()
            await self._examine(untried[0])

    def _forget_old(self) -> None:
        """Keep nothing of models that the engine no longer has."""
        now = set(self._engine.models)
        for model in [each for each in self._tests if each not in now]:
            del self._tests[model]

    async def _examine(self, model: EngineModel) -> None:
        """Try one model until it is known; an engine that goes away is waited for elsewhere."""
        findings = self._findings.setdefault(model, _Findings(model))
        started_s = trio.current_time()
        try:
            with trio.move_on_after(TEST_S_MAX) as scope:
                await self._try_all(findings)
        except _EngineGoneError:
            return
        finally:
            findings.took_s += trio.current_time() - started_s
        if scope.cancelled_caught:
            _note_untried(findings, TABLES[self._engine.parameter_table].abilities)
        del self._findings[model]
        test = self._tests[model] = findings.self_test()
        (_LOG.info if test.announced else _LOG.warning)("%s", test.line())

    async def _try_all(self, findings: _Findings) -> None:
        table = self._engine.parameter_table
        examiner = Examiner(self._engine, table, self._wait_left)
        abilities = TABLES[table].abilities
        if findings.first is None:
            await self._try_first(findings, examiner)
        first = findings.first
        if first is None:
            return
        trials = (trial_of_max_tokens(first), *trials_after(first, abilities))
        for trial in trials:
            if trial.ability not in findings.results:
                await self._try(findings, examiner, trial)

    async def _wait_left(self) -> None:
        await self._left.wait()

    async def _try_first(self, findings: _Findings, examiner: Examiner) -> None:
        try:
            first = await examiner.ask(findings.model, FIRST, FIRST_S_MAX)
        except _TrialFailedError as error:
            findings.note(Ability.STREAM, str(error))
            return
        except _EngineGoneError:
            findings.gone_first += 1
            if findings.gone_first < FIRST_GONE_MAX:
                raise
            findings.note(Ability.STREAM, _GONE)
            return
        findings.tokens += first.tokens
        findings.note(Ability.STREAM, judge_stream(first))
        findings.note(Ability.USAGE, judge_usage(first))
        if not any(each.detail for each in findings.results.values()):
            findings.first = first

    async def _try(self, findings: _Findings, examiner: Examiner, trial: Trial) -> None:
        answers: list[Answer] = []
        try:
            for fields in trial.requests:
                answer = await examiner.ask(findings.model, fields, TRIAL_S_MAX)
                findings.tokens += answer.tokens
                answers.append(answer)
        except _TrialFailedError as error:
            findings.note(trial.ability, str(error))
            return
        except _EngineGoneError:
            findings.note(trial.ability, _GONE)  # and never asked again: it would die again
            raise
        findings.note(trial.ability, trial.judge(answers))


def _note_untried(findings: _Findings, abilities: frozenset[Ability]) -> None:
    for ability in abilities - findings.results.keys():
        findings.note(ability, f"not tried within {TEST_S_MAX:g} s", Verdict.UNTRIED)


def _why(test: SelfTest) -> str:
    """Return why a model is not announced, for its owner."""
    failed = [
        f"{each.ability}: {each.detail}"
        for each in test.results
        if each.detail and Ability(each.ability) in MINIMUM
    ]
    return f"{test.model_id} failed its self-test and is not announced ({'; '.join(failed)})"


def self_tests_of(engine: Engine) -> list[SelfTest]:
    """Return what is known of an engine's models; nothing, if it was never tried."""
    return engine.self_tests if isinstance(engine, TestedEngine) else []

"""The terms of the chosen model: shown whole, and accepted or not."""

from dataclasses import dataclass

from peer.host.consents import read_catalogue, read_terms
from peer.host.licences import Knowledge
from sparewatt.host_init.model_question import Served
from sparewatt.host_init.setup import Setup
from sparewatt.model_terms import open_terms
from sparewatt.problems import Problem


@dataclass(frozen=True, slots=True)
class Accepted:
    """Terms that the owner accepted; empty ids if there was nothing to accept."""

    model_id: str = ""
    licence: str = ""


def ask_terms(setup: Setup, served: Served, *, accepts: bool) -> Accepted:
    """Show the terms of a model of the catalogue, and ask whether they are accepted.

    Args:
        setup: This run.
        served: What was chosen.
        accepts: Whether a flag said yes.

    Raises:
        Problem: If they are not accepted.
    """
    if served.candidate is None:
        if served.engines:
            setup.hint("Its terms: sparewatt models accept, if the host says that they are open.")
        return Accepted()
    model = served.candidate.model
    knowledge = Knowledge(read_catalogue(), read_terms())
    setup.console.print()
    for line in knowledge.statement(model.model_id, model.licence).splitlines():
        setup.say(line)
    if knowledge.is_granted(model.licence):
        setup.hint("These terms let everybody serve it.")
        return Accepted(model.model_id, model.licence)
    question = "  Have you read these terms, and do you accept them?"
    if accepts or setup.ask.yes(question, default=False):
        return Accepted(model.model_id, model.licence)
    raise Problem(
        f"without its terms {model.title} can't be served",
        "choose another model, or accept them: --accept-licence",
    )


def keep_terms(setup: Setup, accepted: Accepted) -> None:
    """Keep that terms were accepted, with the digest of what was shown."""
    if not accepted.model_id:
        return
    with open_terms(setup.data_dir) as desk:
        shown = desk.show(accepted.model_id, accepted.licence)
        if not shown.is_accepted:
            desk.accept(shown)

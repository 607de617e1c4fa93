"""``sparewatt settlement``: the service, and its accounts."""

import dataclasses
import logging
from pathlib import Path

import click

from sparewatt.commands.common import data_option, example
from sparewatt.daemon import explained, ready_writer, set_up_log
from sparewatt.options import PORT, dollars, read_dollars
from sparewatt.problems import Problem

LOG = logging.getLogger(__name__)
CREDIT_ID_HELP = "A name for this credit; the same one again changes nothing."


@click.group(
    "settlement",
    epilog=example(
        "sparewatt settlement init --network-id my-net --url http://203.0.113.7:8900 > join.json",
        "sparewatt settlement serve",
    ),
)
def settlement_command() -> None:
    """Run settlement; keep its accounts.

    Settlement reserves credit for allowances and turns vouchers into postings of a double-entry
    ledger. No request passes through it.
    """


@settlement_command.command(
    "init",
    epilog=example(
        "sparewatt settlement init --network-id my-net --url http://203.0.113.7:8900 "
        "--bootstrap /ip4/203.0.113.7/tcp/4001/p2p/12D3KooW… > join.json"
    ),
)
@data_option("settlement")
@click.option("--network-id", metavar="ID", required=True, help="1 to 32 of a-z, 0-9 and -.")
@click.option("--url", metavar="URL", required=True, help="Where nodes will reach settlement.")
@click.option("--bootstrap", metavar="MULTIADDR", multiple=True, help="A relay's address.")
@click.option("--model", "models", metavar="ID", multiple=True, help="A model to look for.")
def init_command(
    data_dir: Path, network_id: str, url: str, bootstrap: tuple[str, ...], models: tuple[str, ...]
) -> None:
    """Make a network: its keys, and its file.

    The keys stay in DIR; the network file goes to standard output.
    Safe to run again: the keys stay, so it also prints the file with other addresses.
    """
    from p2p.network import NetworkInfo
    from p2p.types import KEY_BYTES, ModelId, NetworkId, PublicKey
    from settlement.keys import init_network

    with explained():
        draft = NetworkInfo(  # refuses what is wrong before keys are made for it
            network_id=NetworkId(network_id),
            root_key=PublicKey(bytes(KEY_BYTES)),
            settlement_url=url.rstrip("/"),
            bootstrap=bootstrap,
            models=tuple(ModelId(name) for name in models),
        )
        keys = init_network(data_dir, draft.network_id)
    click.echo(dataclasses.replace(draft, root_key=keys.root_key).to_json(), nl=False)


@settlement_command.command(
    "serve", epilog=example("sparewatt settlement serve --port 8900 --fee-bps 500")
)
@data_option("settlement")
@click.option("--bind", metavar="HOST", default="127.0.0.1", show_default=True)
@click.option("--port", type=PORT, default=8900, show_default=True, help="0 takes a free one.")
@click.option(
    "--fee-bps",
    type=click.IntRange(0, 10_000),
    default=500,
    show_default=True,
    help="Settlement's share of what is paid, in hundredths of a percent.",
)
@click.option(
    "--verify-processes",
    metavar="N",
    type=click.IntRange(0, 64),
    default=0,
    show_default=True,
    help="Processes that check signatures: 0 with one core, else the cores less one.",
)
@click.option("--verbose", is_flag=True, help="Log more.")
def serve_command(
    data_dir: Path, bind: str, port: int, fee_bps: int, verify_processes: int, *, verbose: bool
) -> None:
    """Run settlement in the foreground.

    For a network made by `sparewatt settlement init`.
    """
    from settlement.keys import load_network
    from settlement.main import Ready, SettlementConfig, serve
    from sparewatt.daemon import die_with_parent

    set_up_log(verbose=verbose)
    die_with_parent()
    _require_settlement(data_dir)
    with explained():
        config = SettlementConfig(
            data_dir=data_dir,
            network_id=load_network(data_dir).network_id,
            host=bind,
            port=port,
            fee_bps=fee_bps,
            verify_processes=verify_processes,
        )
        write = ready_writer(data_dir)

        def ready(ready: Ready) -> None:
            write({"url": ready.url})
            LOG.info("settlement of %s answers on %s", config.network_id, ready.url)

        serve(config, ready=ready)


@settlement_command.command(
    "verify",
    epilog=example("sparewatt settlement verify", "sparewatt settlement verify --json"),
)
@data_option("settlement")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_command(data_dir: Path, *, as_json: bool) -> None:
    """Rebuild the books and compare: exit status 0 only if all is right.

    Works beside a running service, and writes nothing. Balances and allowances are built anew
    from the rows that are never changed; every signature that money rests on is verified.
    """
    import json

    from settlement.verify import verify
    from sparewatt.verification import ProgressLine, print_report, report_fields

    _require_settlement(data_dir)
    progress = ProgressLine()
    with explained():
        report = verify(data_dir, progress=progress)
    progress.clear()
    if as_json:
        click.echo(json.dumps(report_fields(report), indent=2))
    else:
        print_report(report)
    if not report.is_clean:
        raise SystemExit(1)


@settlement_command.group(
    "account", epilog=example("sparewatt settlement account credit ACCOUNT 25 --id invoice-2041")
)
def account_group() -> None:
    """Make accounts, give them credit, join nodes to them.

    Works while settlement runs.
    """


@account_group.command("add", epilog=example("sparewatt settlement account add alice"))
@click.argument("name")
@data_option("settlement")
def add_command(name: str, data_dir: Path) -> None:
    """Make an account; print its id and token.

    The token is its owner's access to statements, and is never shown again.
    """
    from settlement.admin import add_account

    _require_settlement(data_dir)
    with explained():
        account_id, token = add_account(data_dir, name)
    click.echo(f"account  {account_id}\ntoken    {token}")
    click.echo("Keep the token: it is not stored and not shown again.", err=True)


@account_group.command(
    "credit",
    epilog=example("sparewatt settlement account credit ACCOUNT 25 --id invoice-2041"),
)
@click.argument("account_id", metavar="ACCOUNT")
@click.argument("amount_micros", metavar="DOLLARS", callback=read_dollars)
@data_option("settlement")
@click.option("--id", "credit_id", metavar="NAME", help=CREDIT_ID_HELP)
@click.option("--promo", is_flag=True, help="Promotional: pays no host of the same owner.")
def credit_command(
    account_id: str, amount_micros: int, data_dir: Path, credit_id: str | None, *, promo: bool
) -> None:
    """Give an account credit, in dollars."""
    import secrets

    from settlement.admin import credit

    _require_settlement(data_dir)
    with explained():
        credit(
            data_dir,
            account_id,
            amount_micros,
            credit_id=credit_id or secrets.token_hex(16),
            promo=promo,
        )
    click.echo(f"credited ${dollars(amount_micros)} to {account_id}")


@account_group.command(
    "code",
    epilog=example(
        "umask 077; sparewatt settlement account code ACCOUNT --role host > code.txt",
        "sparewatt host --enrol-code-file code.txt --network join.json --engine demo",
    ),
)
@click.argument("account_id", metavar="ACCOUNT")
@click.option("--role", type=click.Choice(["host", "gateway"]), required=True)
@data_option("settlement")
def code_command(account_id: str, role: str, data_dir: Path) -> None:
    """Print a code that joins a node to an account.

    It is good for one node's key, once, within a day.
    """
    from settlement.admin import enrolment_code

    _require_settlement(data_dir)
    with explained():
        click.echo(enrolment_code(data_dir, account_id, role))


@settlement_command.group("gpu", epilog=example("sparewatt settlement gpu conflicts"))
def gpu_group() -> None:
    """See who claims whose GPUs, and decide.

    Works while settlement runs.
    """


@gpu_group.command("conflicts", epilog=example("sparewatt settlement gpu conflicts"))
@data_option("settlement")
def conflicts_command(data_dir: Path) -> None:
    """List hosts that claimed a GPU which another one had.

    The database keeps the report and the signature of each.
    """
    from settlement.admin import gpu_conflicts
    from settlement.api.models import time_text

    _require_settlement(data_dir)
    with explained():
        found = gpu_conflicts(data_dir)
    for each in found:
        click.echo(
            f"{time_text(each.at_ns)}  {each.uuid}  claimed by {each.peer_id}, "
            f"held by {each.holder_peer_id}"
        )
    if not found:
        click.echo("No host ever claimed another's GPU.", err=True)


@gpu_group.command(
    "release",
    epilog=example("sparewatt settlement gpu release GPU-5f1f4ac8-6b14-3f7e-9d36-0c4f5a0d7c11"),
)
@click.argument("uuid", metavar="UUID")
@data_option("settlement")
def release_command(uuid: str, data_dir: Path) -> None:
    """Take a GPU from the host that holds it.

    The next host that reports it has it: stop the wrong one first.
    """
    from settlement.admin import release_gpu

    _require_settlement(data_dir)
    with explained():
        claim = release_gpu(data_dir, uuid)
    click.echo(f"released {uuid}, which host {claim.peer_id} held")


def _require_settlement(data_dir: Path) -> None:
    if not data_dir.is_dir():
        raise Problem(
            f"there is no settlement in {data_dir}",
            "name its directory with --data, or make one with `sparewatt settlement init`",
        )

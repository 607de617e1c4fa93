"""The FastAPI application over a service."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from p2p.clock import WallClock
from settlement.api import routes_hardware, routes_nodes, routes_people, routes_prices
from settlement.api.limits import BoundedRequests
from settlement.api.problems import document_errors, install_problem_handlers
from settlement.service import Service

OpenService = Callable[[], AbstractAsyncContextManager[Service]]


def create_app(open_service: OpenService, clock: WallClock) -> FastAPI:
    """Return the application; the service lives as long as it runs.

    Args:
        open_service: Opens the service in the server's event loop.
        clock: Tells the Date header.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_service() as service:
            app.state.service = service
            yield

    app = FastAPI(
        title="Sparewatt settlement",
        version=version("sparewatt"),
        summary="Turns signed vouchers and receipts into bills and payouts.",
        description="Amounts are integer micro-dollars. Every operation may be repeated.",
        lifespan=lifespan,
    )
    app.include_router(routes_nodes.router)
    app.include_router(routes_hardware.router)
    app.include_router(routes_prices.router)
    app.include_router(routes_people.router)
    install_problem_handlers(app)
    app.add_middleware(BoundedRequests, clock=clock)
    document_errors(app)
    return app

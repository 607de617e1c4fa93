"""The one screen: the title, the tabs, a page, the keys; and what stands there without a host."""

from collections.abc import Callable
from datetime import datetime, tzinfo
from functools import partial

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.events import Click
from textual.message import Message
from textual.screen import Screen
from textual.widgets import ContentSwitcher, Static
from textual.worker import WorkType

from tui.model.answers import Facts
from tui.model.status import Down, HostStatus, LogEntry, Update
from tui.owner import Owner
from tui.pages.base import Page
from tui.pages.logs import LogsPage
from tui.pages.models import ModelsPage
from tui.pages.network import NetworkPage
from tui.pages.overview import OverviewPage
from tui.pages.requests import RequestsPage
from tui.pages.schedule import SchedulePage
from tui.pages.settings import SettingsPage
from tui.widgets import DownPanel, KeyBar, NoticeBar, TitleBar

PAGES: tuple[type[Page], ...] = (
    OverviewPage,
    ModelsPage,
    RequestsPage,
    NetworkPage,
    SchedulePage,
    LogsPage,
    SettingsPage,
)
FACTS_STATUSES_COUNT = 3  # with every third status, that is every three seconds
CLOSED_FIRST_COUNT = 3  # parts without parts of their own, which are gone first when the app closes
HELP_TEXT = """\
[b #f5b83d]{title}[/]
{own}

[b #f5b83d]Everywhere[/]
 [b]1 … 7[/]  pages      [b][ ][/]  the page before, after   [b]tab[/]  next part
 [b]^p[/]     commands   [b]q[/]    quit; the host goes on   [b]?[/]    this help

[#8b949e]esc closes this page[/]"""


class Tab(Static):
    """A page's name, to be clicked."""

    class Chosen(Message):
        """A tab was clicked."""

        def __init__(self, page_id: str) -> None:
            super().__init__()
            self.page_id = page_id

    def __init__(self, kind: type[Page], page_id: str) -> None:
        super().__init__(Text.assemble((kind.KEY, "#8b949e"), f" {kind.TITLE}"), classes="tab")
        self.page_id = page_id

    def on_click(self, _: Click) -> None:
        """Open the page."""
        self.post_message(self.Chosen(self.page_id))


class HostScreen(Screen[None]):
    """A host, page by page."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (116, "-wide")]  # noqa: RUF012 - Textual's shape

    def __init__(self, owner: Owner, zone: tzinfo | None, now: Callable[[], datetime]) -> None:
        super().__init__()
        self._owner = owner
        self._pages: tuple[Page, ...] = (
            OverviewPage(zone),
            ModelsPage(owner),
            RequestsPage(zone),
            NetworkPage(owner, zone),
            SchedulePage(owner, zone, now),
            LogsPage(zone),
            SettingsPage(owner),
        )
        self._statuses_count = 0
        owner.on_change = self.fetch

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield TitleBar(id="title")
        with Horizontal(id="tabs"):
            for page in self._pages:
                assert page.id is not None
                yield Tab(type(page), page.id)
        yield NoticeBar(id="notices")
        with ContentSwitcher(id="body", initial=self._pages[0].id):
            yield from self._pages
        with Vertical(id="down"):
            yield DownPanel(id="down-panel")
        yield KeyBar()

    def on_mount(self) -> None:
        """Show that nothing is known yet."""
        self._mark_tab()
        self._show_down(Down("Connecting …", "", ""))

    @property
    def page(self) -> Page:
        """The page in front."""
        current = self.query_one("#body", ContentSwitcher).current
        return next(page for page in self._pages if page.id == current)

    @property
    def help_text(self) -> str:
        """The help of the page in front, in markup."""
        return HELP_TEXT.format(title=self.page.TITLE, own=self.page.HELP)

    # -- pages ---------------------------------------------------------------------------------
    def open_page(self, number: int) -> None:
        """Open a page, counted from 1, round the ends."""
        page = self._pages[(number - 1) % len(self._pages)]
        self.query_one("#body", ContentSwitcher).current = page.id
        self._mark_tab()
        if self._owner.status is not None:
            page.show(self._owner.status)
            self._take_keys()
        self.fetch()

    def open_beside(self, step: int) -> None:
        """Open the page so many further on."""
        self.open_page(self._pages.index(self.page) + 1 + step)

    def on_tab_chosen(self, event: Tab.Chosen) -> None:
        """Open the page of the tab."""
        ids = [page.id for page in self._pages]
        self.open_page(ids.index(event.page_id) + 1)

    def _mark_tab(self) -> None:
        current = self.page.id
        for tab in self.query(Tab):
            tab.set_class(tab.page_id == current, "-current")

    def _take_keys(self) -> None:
        self.call_after_refresh(self.page.take_keys)

    def fetch(self) -> None:
        """Fetch what the page in front shows besides the status."""
        if self._owner.status is not None and self.page.NEEDS:
            # A function, as one that is overtaken before it began is never awaited.
            work: WorkType[None] = partial(self._fetch, self.page)
            self.run_worker(work, exclusive=True, group="facts")

    async def _fetch(self, page: Page) -> None:
        facts: Facts = await self._owner.fetch(page.NEEDS)
        page.take(facts)

    # -- updates -------------------------------------------------------------------------------
    def apply(self, update: Update) -> None:
        """Show what is new; nothing while the app closes and its parts are gone."""
        if len(self.query("#title-left, #title-right, #down-panel")) < CLOSED_FIRST_COUNT:
            return
        if isinstance(update, HostStatus):
            self._show_status(update)
        elif isinstance(update, LogEntry):
            self.query_one(OverviewPage).add(update)
            self.query_one(LogsPage).add(update)
        else:
            self._show_down(update)

    def _show_status(self, status: HostStatus) -> None:
        is_first = self._owner.status is None
        self._owner.status = status
        self.query_one("#body").display = True
        self.query_one("#down").display = False
        self.query_one(TitleBar).show(status)
        self.query_one(NoticeBar).show(status)
        self.query_one(OverviewPage).show(status)  # its curve goes on behind the other pages
        if self.page is not self.query_one(OverviewPage):
            self.page.show(status)
        if is_first:
            self._take_keys()
        is_due = self._statuses_count % FACTS_STATUSES_COUNT == 0
        if is_first or is_due or self.page.is_busy:
            self.fetch()
        self._statuses_count += 1

    def _show_down(self, down: Down) -> None:
        self._owner.status = None
        self.query_one("#body").display = False
        self.query_one("#down").display = True
        self.query_one(TitleBar).show(None)
        self.query_one(NoticeBar).show(None)
        self.query_one(DownPanel).show(down)

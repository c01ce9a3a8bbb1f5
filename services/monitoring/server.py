"""The HTTP interface: an application over one Monitor. Nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from bus.messages import AlertState
from cdn_daemon.api import EXCEPTION_HANDLERS, Reason, RefusedError, answer, read_body, read_json
from cdn_daemon.exposition import CONTENT_TYPE
from services.monitoring import evaluate, host, promql, rules
from services.monitoring.api import (
    Bad,
    Good,
    ImportAnswer,
    RuleAnswer,
    RulesAnswer,
    StaticTarget,
    TargetsAnswer,
    TargetsRequest,
    Told,
    shown,
)
from services.monitoring.evaluate import Question
from services.monitoring.exposition import LABEL, NAME, Labels
from services.monitoring.fetching import url_problem
from services.monitoring.keeper import FLUSH_S
from services.monitoring.limits import Limits
from services.monitoring.monitor import Monitor, RuleState, TooLongError
from services.monitoring.pattern import Matcher
from services.monitoring.promql import QueryError, Selector
from services.monitoring.rules import Rule
from services.monitoring.scraper import HOST, Spec, Target
from services.stream import Stream

STREAM_BACKLOG = 200
LATEST_S = 253_402_300_799.0
_RULE_NAME = msgspec.json.Decoder(rules.RuleName)
Parameters = dict[str, list[str]]
Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """Answers requests."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.limits = monitor.limits
        self.stream = Stream(monitor.limits.clients, STREAM_BACKLOG, instead="GET /api/v1/alerts")

    # -- questions, in Prometheus' words ----------------------------------------------------------------

    async def query(self, request: Request) -> Response:
        """``/api/v1/query``: at one moment."""
        given = await self._parameters(request, ("query", "time", "timeout"))
        node = self._parsed(given)
        at_ms = _moment(given, "time", time.time())
        kind = promql.kind(node)
        if kind == "matrix":
            assert isinstance(node, Selector)
            told = await self.monitor.ask(lambda question: evaluate.ranges(node, question), [at_ms])
            matrix = [
                {"metric": dict(labels), "values": [[at / 1000, shown(value)] for at, value in pairs]}
                for labels, pairs in sorted(told.items())
            ]
            return _good({"resultType": "matrix", "result": matrix})
        found = await self.monitor.ask(lambda question: evaluate.evaluate(node, question), [at_ms])
        if isinstance(found, list):
            return _good({"resultType": "scalar", "result": [at_ms / 1000, shown(found[0])]})
        vector = [
            {"metric": dict(labels), "value": [at_ms / 1000, shown(column[0])]}
            for labels, column in sorted(found.items())
            if column[0] is not None
        ]
        return _good({"resultType": "vector", "result": vector})

    async def query_range(self, request: Request) -> Response:
        """``/api/v1/query_range``: at every step from start to end."""
        given = await self._parameters(request, ("query", "start", "end", "step", "timeout"))
        node = self._parsed(given)
        start_ms, end_ms, step_ms = _moment(given, "start"), _moment(given, "end"), _step(given)
        if end_ms < start_ms:
            raise RefusedError(400, "cannot answer: end is before start", value=f"{start_ms / 1000} to {end_ms / 1000}")
        if (end_ms - start_ms) // step_ms + 1 > self.limits.points:
            limit = f"{self.limits.points} steps"
            raise RefusedError(
                400, "cannot answer for so many steps", value=(end_ms - start_ms) // step_ms + 1, limit=limit
            )
        if promql.kind(node) == "matrix":
            raise RefusedError(400, "cannot answer: a range has no value at a step", next="put rate() or so around it")
        steps = list(range(start_ms, end_ms + 1, step_ms))

        def work(question: Question) -> bytes:
            found = evaluate.evaluate(node, question)
            columns: evaluate.Vector = {(): list(found)} if isinstance(found, list) else found
            result = [
                {
                    "metric": dict(labels),
                    "values": [
                        [step / 1000, shown(value)]
                        for step, value in zip(steps, column, strict=True)
                        if value is not None
                    ],
                }
                for labels, column in sorted(columns.items())
                if any(value is not None for value in column)
            ]
            return msgspec.json.encode(Good(data={"resultType": "matrix", "result": result}))

        return Response(await self.monitor.ask(work, steps), media_type="application/json")

    async def series(self, request: Request) -> Response:
        """``/api/v1/series``."""
        given = await self._parameters(request, ("match[]", "start", "end", "limit"))
        selectors = self._selectors(given)
        if not selectors:
            raise RefusedError(400, "cannot list every series", next="give match[]=up, or so")
        found = await self._series(given, selectors)
        return _good([dict(labels) for labels in found[: self.limits.page]])

    async def labels(self, request: Request) -> Response:
        """``/api/v1/labels``."""
        given = await self._parameters(request, ("match[]", "start", "end", "limit"))
        found = await self._series(given, self._selectors(given))
        return _good(sorted({name for labels in found for name, _ in labels})[: self.limits.page])

    async def values(self, request: Request) -> Response:
        """``/api/v1/label/NAME/values``."""
        name = request.path_params["name"]
        if not LABEL.fullmatch(name):
            raise RefusedError(400, "cannot use this label's name", value=name, limit="[a-zA-Z_][a-zA-Z0-9_]*")
        given = await self._parameters(request, ("match[]", "start", "end", "limit"))
        found = await self._series(given, self._selectors(given))
        return _good(
            sorted({value for labels in found for label, value in labels if label == name})[: self.limits.page]
        )

    async def _series(self, given: Parameters, selectors: list[Selector]) -> list[Labels]:
        begin_ms, end_ms = _moment(given, "start", 0.0), _moment(given, "end", LATEST_S)
        if end_ms < begin_ms:
            raise RefusedError(400, "cannot answer: end is before start", value=f"{begin_ms / 1000} to {end_ms / 1000}")
        limit = _limit(given)
        if "start" not in given and "end" not in given:
            store = self.monitor.store

            def known(_: Question) -> list[Labels]:
                if selectors:
                    return sorted({one.labels for selector in selectors for one in store.find(selector.matchers)})
                with store.lock:
                    return sorted(store.by_labels)

            return (await self.monitor.ask(known, [0]))[:limit]
        chosen = selectors or [Selector((Matcher(NAME, "!=", ""),))]
        found = await self.monitor.ask(
            lambda question: self.monitor.series(question, chosen, begin_ms, end_ms), [begin_ms]
        )
        return found[:limit]

    def _selectors(self, given: Parameters) -> list[Selector]:
        texts = given.get("match[]", [])
        if sum(len(text) for text in texts) > self.limits.query_chars:
            raise RefusedError(400, "cannot use so long a selector", limit=f"{self.limits.query_chars} characters")
        return [_understood(promql.parse_selector, text) for text in texts]

    def _parsed(self, given: Parameters) -> promql.Node:
        text = _one(given, "query")
        if text is None or not text.strip():
            raise RefusedError(400, "cannot answer: there is no query", next="give query=up, or so")
        if len(text) > self.limits.query_chars:
            raise RefusedError(400, "cannot use so long a query", limit=f"{self.limits.query_chars} characters")
        node: promql.Node = _understood(promql.parse, text)
        return node

    async def _parameters(self, request: Request, known: tuple[str, ...]) -> Parameters:
        """Of the query string, and of a form that was posted; each may be given once, save match[]."""
        text = request.url.query
        if request.method == "POST":
            body = await read_body(request, self.limits.body_bytes)
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if body and kind != "application/x-www-form-urlencoded":
                raise RefusedError(415, "cannot read this body", value=kind, limit="application/x-www-form-urlencoded")
            try:
                text += ("&" if text and body else "") + body.decode()
            except UnicodeDecodeError:
                raise RefusedError(400, "cannot read the form: it is not UTF-8") from None
        try:
            given = parse_qs(text, keep_blank_values=True, max_num_fields=100, errors="strict")
        except ValueError as error:
            raise RefusedError(400, f"cannot read the parameters: {error}") from None
        for name, values in given.items():
            if name not in known:
                raise RefusedError(400, "cannot use this parameter", value=name, limit=", ".join(known))
            if len(values) > 1 and name != "match[]":
                raise RefusedError(400, f"cannot use {name} twice", value=", ".join(values))
        return given

    # -- targets and rules, in Prometheus' words ----------------------------------------------------------

    async def prometheus_targets(self, request: Request) -> Response:
        """``/api/v1/targets``."""
        given = await self._parameters(request, ("state", "scrapePool"))
        if (state := _one(given, "state")) not in (None, "active", "dropped", "any"):
            raise RefusedError(400, "cannot use this state", value=state, limit="active, dropped, any")
        targets = (
            [] if state == "dropped" else sorted(self.monitor.scraper.targets.values(), key=lambda one: one.spec.url)
        )
        return _good({"activeTargets": [self._target(one) for one in targets], "droppedTargets": []})

    def _target(self, target: Target) -> dict[str, Any]:
        scraper = self.monitor.scraper
        with scraper.lock:
            interval_s = scraper.schedule.interval(f"{target.spec.url} {target.spec.labels}")
        url = "/host/metrics" if target.spec.url == HOST else target.spec.url
        return {
            "discoveredLabels": {"__address__": dict(target.spec.labels).get("instance", "")},
            "labels": dict(target.spec.labels),
            "scrapePool": target.origin,
            "scrapeUrl": url,
            "globalUrl": url,
            "lastError": target.error or "",
            "lastScrape": _date(target.scraped_s),
            "lastScrapeDuration": target.took_s,
            "health": "unknown" if target.scraped_s is None else "down" if target.error else "up",
            "scrapeInterval": f"{interval_s:g}s",
            "scrapeTimeout": f"{self.limits.scrape_s:g}s",
        }

    async def prometheus_rules(self, request: Request) -> Response:
        """``/api/v1/rules``."""
        await self._parameters(request, ("type",))
        told = [self._rule(name, state) for name, state in sorted(self.monitor.rules.items())]
        group = {
            "name": "rules",
            "file": "",
            "rules": told,
            "interval": self.limits.rules_every_s,
            "limit": 0,
            "evaluationTime": sum(state.took_s for state in self.monitor.rules.values()),
            "lastEvaluation": _date(max((one.evaluated_s or 0 for one in self.monitor.rules.values()), default=None)),
        }
        return _good({"groups": [group] if told else []})

    def _rule(self, name: str, state: RuleState) -> dict[str, Any]:
        states = {alert.state for alert in state.alerts.values()}
        worst = "firing" if AlertState.FIRING in states else "pending" if states else "inactive"
        return {
            "state": worst,
            "name": name,
            "query": state.rule.expr,
            "duration": state.rule.for_s,
            "labels": state.rule.labels,
            "annotations": state.rule.annotations,
            "alerts": self._alerts(state),
            "health": "err" if state.error else "ok" if state.evaluated_s is not None else "unknown",
            "lastError": state.error,
            "evaluationTime": state.took_s,
            "lastEvaluation": _date(state.evaluated_s),
            "type": "alerting",
        }

    def _alerts(self, state: RuleState) -> list[dict[str, Any]]:
        return [
            {
                "labels": dict(labels),
                "annotations": state.rule.annotations,
                "state": alert.state.value,
                "activeAt": _date(alert.since_s),
                "value": shown(alert.value),
            }
            for labels, alert in sorted(state.alerts.items())
        ]

    async def prometheus_alerts(self, request: Request) -> Response:
        """``/api/v1/alerts``."""
        return _good(
            {"alerts": [one for _, state in sorted(self.monitor.rules.items()) for one in self._alerts(state)]}
        )

    async def metadata(self, request: Request) -> Response:
        """``/api/v1/metadata``."""
        given = await self._parameters(request, ("metric", "limit"))
        wanted, known = _one(given, "metric"), dict(self.monitor.scraper.metadata)
        names = sorted(known if wanted is None else {wanted} & known.keys())[: _limit(given)]
        return _good({name: [{"type": known[name].type, "help": known[name].help, "unit": ""}] for name in names})

    async def buildinfo(self, request: Request) -> Response:
        """``/api/v1/status/buildinfo``: Grafana asks whom it has before it."""
        return _good({"version": "2.42.0", "application": "cdn-monitoring", "features": {}})

    # -- in ---------------------------------------------------------------------------------------------

    async def import_samples(self, request: Request) -> Response:
        """``POST /api/v1/import/prometheus``: samples in the text format; answered when they are on disk."""
        body = await read_body(request, self.limits.import_bytes)
        taken, known = await self.monitor.take(body)
        return answer(ImportAnswer(taken=taken, known=known))

    async def put_targets(self, request: Request) -> Response:
        """``PUT /targets``."""
        asked = await read_json(request, TargetsRequest, self.limits.body_bytes)
        if len(asked.targets) > self.limits.targets:
            raise RefusedError(
                422, "cannot scrape so many targets", value=len(asked.targets), limit=self.limits.targets
            )
        specs = []
        for target in asked.targets:
            if why := url_problem(target.url):
                raise RefusedError(422, f"cannot scrape this: {why}", value=target.url)
            if NAME in target.labels:
                raise RefusedError(422, f"cannot use {NAME} as a label of a target", value=target.url)
            place = target.url.partition("//")[2].partition("/")[0].partition("?")[0]
            labels = {"job": "static", "instance": place} | target.labels
            specs.append(Spec(target.url, tuple(sorted((name, text) for name, text in labels.items() if text))))
        if len(set(specs)) < len(specs):
            raise RefusedError(422, "cannot scrape the same target twice", next="give it once, or other labels")
        await self.monitor.set_static(specs)
        return await self.get_targets(request)

    async def get_targets(self, request: Request) -> Response:
        """``GET /targets``."""
        every = [StaticTarget(url=one.url, labels=dict(one.labels)) for one in self.monitor.static]
        return answer(TargetsAnswer(targets=every))

    async def put_rule(self, request: Request) -> Response:
        """``PUT /rules/NAME``."""
        name = _rule_name(request)
        rule = await read_json(request, Rule, self.limits.body_bytes)
        if {NAME, "alertname", "alertstate"} & rule.labels.keys():
            raise RefusedError(
                422, "cannot use these labels in a rule", value=list(rule.labels), limit="not alertname, alertstate"
            )
        try:
            await self.monitor.set_rule(name, rule)
        except (QueryError, RecursionError) as error:
            why = str(error) if isinstance(error, QueryError) else "it is nested too deeply"
            raise RefusedError(422, f"cannot understand the rule's expression: {why}", value=rule.expr) from None
        return answer(RuleAnswer(name=name, rule=rule))

    async def get_rule(self, request: Request) -> Response:
        """``GET /rules/NAME``."""
        name = _rule_name(request)
        state = self.monitor.rules.get(name)
        if state is None:
            raise RefusedError(404, "cannot find this rule", value=name, next="GET /rules lists them")
        return answer(RuleAnswer(name=name, rule=state.rule, alerts=self._alerts(state)))

    async def delete_rule(self, request: Request) -> Response:
        """``DELETE /rules/NAME``."""
        await self.monitor.drop_rule(_rule_name(request))
        return Response(status_code=204)

    async def get_rules(self, request: Request) -> Response:
        """``GET /rules``."""
        every = sorted(self.monitor.rules.items())
        return answer(
            RulesAnswer(rules=[RuleAnswer(name=name, rule=one.rule, alerts=self._alerts(one)) for name, one in every])
        )

    async def host_metrics(self, request: Request) -> Response:
        """``GET /host/metrics``: this host's /proc, for another to scrape."""
        return Response(await asyncio.to_thread(host.exposition), media_type=CONTENT_TYPE)

    def told(self, change: rules.Change, rule: Rule, id: str) -> None:
        """To the stream."""
        self.stream.tell(
            Told(
                name=change.rule,
                state=change.state.value,
                labels=dict(change.labels),
                annotations=rule.annotations,
                value=change.value,
                event=id,
            )
        )


def _rule_name(request: Request) -> str:
    name = request.path_params["name"]
    try:
        return _RULE_NAME.decode(msgspec.json.encode(name))
    except msgspec.ValidationError:
        limit = "a letter, then at most 99 letters, digits, '_', '.', ':' and '-'"
        raise RefusedError(422, "cannot name a rule so", value=name, limit=limit) from None


def _understood(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except QueryError as error:
        raise RefusedError(
            400, f"cannot understand the query: {error}", value=text, next="see docs/monitoring.md"
        ) from None
    except RecursionError:
        raise RefusedError(400, "cannot understand the query: it is nested too deeply", value=text) from None


def _one(given: Parameters, name: str) -> str | None:
    values = given.get(name)
    return None if values is None else values[0]


def _limit(given: Parameters) -> int | None:
    text = _one(given, "limit")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RefusedError(400, "cannot use this limit", value=text, limit="a whole number")
    return int(text) or None


def _moment(given: Parameters, name: str, default_s: float | None = None) -> int:
    """Unix time or RFC 3339, in ms."""
    text = _one(given, name)
    if text is None:
        if default_s is None:
            raise RefusedError(400, f"cannot answer without {name}", next=f"give {name}=UNIX_TIME or RFC 3339")
        return int(default_s * 1000)
    try:
        at_s = float(text)
    except ValueError:
        try:
            at = datetime.fromisoformat(text)
            at_s = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            at_s = math.nan
    if not 0 <= at_s <= LATEST_S:
        raise RefusedError(400, f"cannot use this {name}", value=text, limit="Unix time, or RFC 3339, to the year 9999")
    return round(at_s * 1000)


def _step(given: Parameters) -> int:
    text = _one(given, "step")
    if text is None:
        raise RefusedError(400, "cannot answer without step", next="give step=15, or step=1m")
    try:
        step_s = float(text)
        step_ms = round(step_s * 1000) if math.isfinite(step_s) else 0
    except ValueError:
        try:
            step_ms = promql.duration_ms(text)
        except QueryError:
            step_ms = 0
    if not 1 <= step_ms <= promql.LONGEST_MS:
        raise RefusedError(400, "cannot use this step", value=text, limit="over 0, seconds or a duration such as 1m")
    return step_ms


def _date(at_s: float | None) -> str:
    if at_s is None:
        return "0001-01-01T00:00:00Z"
    return datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", "Z")


def _good(data: Any) -> Response:
    return answer(Good(data=data))


_TYPES = {503: "unavailable", 500: "internal", 404: "not_found", 422: "execution"}


def _prometheus(handler: Handler) -> Handler:
    """Refusals in Prometheus' shape."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except RefusedError as error:
            reason = error.reason
            kind = _TYPES.get(reason.status, "bad_data")
        except QueryError as error:
            too_long = isinstance(error, TooLongError)
            kind = "timeout" if too_long else "execution"
            reason = Reason(status=503 if too_long else 422, what=f"cannot answer the query: {error}")
        details = [("", reason.value), ("limit ", reason.limit), ("", reason.next)]
        text = "; ".join([reason.what, *(f"{name}{value}" for name, value in details if value)])
        return answer(Bad(errorType=kind, error=text, reason=reason), reason.status)

    return handle


def make_app(
    directory: Path,
    *,
    feed: str | None = None,
    hostname: str = "localhost",
    limits: Limits | None = None,
    flush_s: float = FLUSH_S,
) -> Starlette:
    """The application over the database in directory, which is opened when the application starts.

    ``feed`` is where ATLAS tells which services there are. ``app.state.monitor`` is the Monitor, ``app.state.api``
    the Api.
    """
    monitor = Monitor(directory, feed, hostname, limits or Limits(), flush_s)
    api = Api(monitor)
    monitor.tell = api.told

    @asynccontextmanager
    async def opened(_: Starlette) -> AsyncIterator[None]:
        await monitor.open()
        try:
            yield
        finally:
            await monitor.close()

    asked = [
        ("query", api.query),
        ("query_range", api.query_range),
        ("series", api.series),
        ("labels", api.labels),
    ]
    told = [
        ("label/{name}/values", api.values),
        ("targets", api.prometheus_targets),
        ("rules", api.prometheus_rules),
        ("alerts", api.prometheus_alerts),
        ("metadata", api.metadata),
        ("status/buildinfo", api.buildinfo),
    ]
    app = Starlette(
        lifespan=opened,
        routes=[
            *(Route(f"/api/v1/{path}", _prometheus(handler), methods=["GET", "POST"]) for path, handler in asked),
            *(Route(f"/api/v1/{path}", _prometheus(handler), methods=["GET"]) for path, handler in told),
            Route("/api/v1/import/prometheus", api.import_samples, methods=["POST"]),
            Route("/targets", api.get_targets, methods=["GET"]),
            Route("/targets", api.put_targets, methods=["PUT"]),
            Route("/rules", api.get_rules, methods=["GET"]),
            Route("/rules/{name}", api.get_rule, methods=["GET"]),
            Route("/rules/{name}", api.put_rule, methods=["PUT"]),
            Route("/rules/{name}", api.delete_rule, methods=["DELETE"]),
            Route("/host/metrics", api.host_metrics, methods=["GET"]),
            WebSocketRoute("/ws/stream", api.stream.serve),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.monitor = monitor
    app.state.api = api
    return app

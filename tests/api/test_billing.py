"""The billing pair, as NextChat and one-api read it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from services.api import billing, errors
from services.api.auth import Authenticator
from services.api.billing import Prices
from services.config import Auth, GatewayKeySetting, Settings
from services.core.models import Secret
from services.keys.usage import today
from services.server import embedded_store
from services.store import Store
from tests.canary_watch import StoreMonitor
from tests.keys.support import Desk

CONFIGURED = "sk-configured-canary7f3e-0123456789"
KEY_ID = "settings:relay"
PATHS = ("/dashboard/billing", "/v1/dashboard/billing")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Ten days of use by one key, and some by another."""
    running = embedded_store.start(tmp_path_factory.mktemp("store"))
    with StoreMonitor(running.url), contextlib.closing(Store(running.url)) as store:
        usage = Desk(store).usage
        for ago in range(10):
            day = today() - timedelta(ago)
            small = {(KEY_ID, "small", "prompt_tokens"): 600}
            large = {(KEY_ID, "large", "completion_tokens"): 400}
            usage.count(f"b{ago}", day, small | large)
            usage.count(f"o{ago}", day, {("key_other", "small", "prompt_tokens"): 9999})
        yield store
    running.stop()


def client(
    store: Store, prices: Prices | None = None, passthrough: bool | None = None
) -> FlaskClient:
    keys = (GatewayKeySetting(key=Secret(CONFIGURED), name="relay"),)
    settings = Settings(auth=Auth(keys=keys, passthrough=passthrough))
    desk = Desk(store, keys)
    app = Flask(__name__)
    errors.register(app)
    auth = Authenticator(settings)
    app.register_blueprint(billing.blueprint(auth, desk.book, desk.usage, prices))
    return app.test_client()


def get(app: FlaskClient, path: str, key: str = CONFIGURED, status: int = 200) -> Any:
    answer = app.get(path, headers={"Authorization": f"Bearer {key}"} if key else {})
    assert answer.status_code == status, answer.text
    return answer.get_json()


@pytest.mark.parametrize("path", PATHS)
def test_subscription_has_the_fields_that_callers_read(store: Store, path: str) -> None:
    shown = get(client(store), f"{path}/subscription")
    assert shown["object"] == "billing_subscription"
    assert shown["has_payment_method"] is True
    limits = {shown[name] for name in ("hard_limit_usd", "soft_limit_usd", "system_hard_limit_usd")}
    assert limits == {1_000_000.0}
    assert isinstance(shown["access_until"], int)
    assert shown["access_until"] > time.time() + 300 * 86_400


@pytest.mark.parametrize("path", PATHS)
def test_usage_is_in_cents_of_the_nominal_price(store: Store, path: str) -> None:
    app = client(store, {"large": 2.0, "*": 0.5})
    start, end = today() - timedelta(3), today() + timedelta(1)
    shown = get(app, f"{path}/usage?start_date={start}&end_date={end}")
    assert shown["object"] == "list"
    assert shown["total_usage"] == pytest.approx(4 * (0.6 * 50 + 0.4 * 200))
    assert len(shown["daily_costs"]) == 4
    first = shown["daily_costs"][0]
    assert first["timestamp"] % 86_400 == 0
    costs = {item["name"]: item["cost"] for item in first["line_items"]}
    assert costs == pytest.approx({"small": 30.0, "large": 80.0})


def test_without_a_price_nothing_costs_anything(store: Store) -> None:
    shown = get(client(store), "/v1/dashboard/billing/usage")
    assert shown["total_usage"] == 0
    assert len(shown["daily_costs"]) == 10


def test_key_made_here_sees_its_own_use(store: Store) -> None:
    desk = Desk(store)
    key, record = desk.key(f"bot {time.time()}")
    desk.usage.count(f"own {record.id}", today(), {(record.id, "small", "prompt_tokens"): 2000})
    shown = get(client(store, {"*": 1.0}), "/dashboard/billing/usage", key)
    assert shown["total_usage"] == pytest.approx(200.0)


def test_caller_with_a_credential_of_its_own_sees_nobodys_use(store: Store) -> None:
    app = client(store, {"*": 1.0}, passthrough=True)
    shown = get(app, "/dashboard/billing/usage", "sk-somebody-elses-canary7f3e")
    assert (shown["total_usage"], shown["daily_costs"]) == (0, [])


@pytest.mark.parametrize("key", ["", "sk-wrong", "sk-cw-wrong"])
@pytest.mark.parametrize("name", ["subscription", "usage"])
def test_wrong_key_is_a_401(store: Store, name: str, key: str) -> None:
    error = get(client(store), f"/dashboard/billing/{name}", key, 401)["error"]
    assert error["code"] == "invalid_api_key"


def test_wrong_date_is_named(store: Store) -> None:
    error = get(client(store), "/dashboard/billing/usage?start_date=soon", status=400)["error"]
    assert error["param"] == "start_date"


def test_parameters_that_mean_nothing_here_are_ignored(store: Store) -> None:
    path = f"/dashboard/billing/usage?start_date={today()}&end_date={today()}&extra=1"
    assert len(get(client(store), path)["daily_costs"]) == 1

"""Celery's settings: what the cluster's promises rest on."""

from __future__ import annotations

import pytest
from celery import Celery

from semantik.settings import Settings, load

BASE = {
    "CELERY_BROKER_URL": "rediss://semantik_worker:secret@head:6379/0",
    "SEMANTIK_DATABASE_URL": "postgresql://head/semantik",
    "CREDENTIALS_DIRECTORY": "/nonexistent",
    "SEMANTIK_CA_FILE": "/etc/semantik/tls/ca.crt",
    "SEMANTIK_VISIBILITY_SECONDS": "7200",
    "SEMANTIK_IMPORTS": "ours.tasks, theirs.tasks",
}


@pytest.fixture
def settings() -> Settings:
    return load(BASE)


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Celery:
    for name, value in BASE.items():
        monkeypatch.setenv(name, value)
    from semantik.celery_app import make_app

    for name in BASE:
        monkeypatch.delenv(name, raising=False)
    return make_app(settings)


def test_messages_survive_their_worker(app: Celery) -> None:
    assert app.conf.task_acks_late is True
    assert app.conf.task_reject_on_worker_lost is True
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.worker_soft_shutdown_timeout == 0


def test_the_visibility_timeout_is_one_wherever_it_is_read(app: Celery) -> None:
    assert app.conf.broker_transport_options["visibility_timeout"] == 7200
    assert app.conf.result_backend_transport_options["visibility_timeout"] == 7200
    assert app.conf.visibility_timeout == 7200
    assert app.connection_for_read().transport_options["visibility_timeout"] == 7200


def test_no_socket_waits_for_ever(app: Celery) -> None:
    for connection in (app.connection_for_read(), app.connection_for_write()):
        options = connection.transport_options
        assert options["socket_timeout"] > 0 and options["socket_connect_timeout"] > 0
        assert options["socket_keepalive"] and options["health_check_interval"] > 0
    backend = app.backend.connparams
    assert backend["socket_timeout"] > 0 and backend["socket_connect_timeout"] > 0
    assert backend["socket_keepalive"] and backend["health_check_interval"] > 0


def test_nothing_but_json_is_taken(app: Celery) -> None:
    assert app.conf.accept_content == ["json"]
    assert (app.conf.task_serializer, app.conf.result_serializer) == ("json", "json")


def test_every_key_has_the_prefix_that_the_acl_allows(app: Celery) -> None:
    assert app.conf.broker_transport_options["global_keyprefix"] == "semantik:"
    assert bytes(app.backend.get_key_for_task("x")).startswith(b"semantik:")


def test_redis_is_verified(app: Celery) -> None:
    assert app.conf.broker_use_ssl == {
        "ssl_cert_reqs": "required",
        "ssl_ca_certs": "/etc/semantik/tls/ca.crt",
    }
    assert app.backend.connparams["ssl_ca_certs"] == "/etc/semantik/tls/ca.crt"


def test_a_look_at_the_settings_does_not_speak_of_insecure_connections(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    assert "secret" not in app.connection_for_write().as_uri()
    shown = app.conf.table(with_defaults=False, censored=True)
    assert "secret" not in str(shown["broker_url"])
    assert caplog.messages == []


def test_users_modules_are_imported_beside_the_clusters(app: Celery) -> None:
    assert app.conf.imports == ["semantik.tasks", "ours.tasks", "theirs.tasks"]


def test_each_task_has_its_queue(app: Celery) -> None:
    routes = {name.rpartition(".")[2]: route["queue"] for name, route in app.conf.task_routes.items()}
    assert routes == {
        "process_embedding_job_task": "ingest",
        "embed_shard_task": "embed",
        "embed_query_task": "query",
        "test_task": "embed",
    }


def test_a_slot_has_a_queue_of_its_own(app: Celery) -> None:
    from semantik.broker import slot_queue

    assert slot_queue("gpu1:3") == "slot.gpu1.3"

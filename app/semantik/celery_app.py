"""The Celery application: `celery --app semantik.celery_app worker ...`, and what sends to it.

Which kind of worker a process becomes is SEMANTIK_ROLE, set by its unit; the `semantik` command, the
scheduler and Flower import the same application with no role.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Any

from celery import Celery

from semantik.exceptions import EX_CONFIG, SettingsError
from semantik.logs import configure, event
from semantik.settings import Settings, load

INGEST = "ingest"
EMBED = "embed"
QUERY = "query"
#: Seconds. Results of tasks are looked at when they end; a job's own truth is in the database.
RESULT_EXPIRES = 86_400
#: Seconds without an answer from Redis until a socket counts as dead. redis-py's default waits for ever. Once
#: the network was cut, each connection that was open may cost a worker so much.
SOCKET_SECONDS = 5.0
CONNECT_SECONDS = 4.0
#: A host that is cut off is noticed in about 14 s, also where a socket only waits; the kernel's default is
#: two hours. What was sent counts as lost after 10 s: retransmissions back off, and a connection that
#: outlives a longer cut would say nothing for as long again once the network is back.
_KEEPALIVE = {
    socket.TCP_KEEPIDLE: 5,
    socket.TCP_KEEPINTVL: 3,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 10_000,  # milliseconds
}


def configuration(settings: Settings) -> dict[str, Any]:
    """Return Celery's settings; each has its reason beside it."""
    transport: dict[str, Any] = {
        "global_keyprefix": settings.key_prefix,  # Redis' ACL allows no other keys
        # Redelivery is the reaper's work, by the database's clock; this only catches what it cannot see.
        "visibility_timeout": settings.visibility_seconds,
        "socket_timeout": SOCKET_SECONDS,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_keepalive": True,
        "socket_keepalive_options": _KEEPALIVE,
        "health_check_interval": 10,
    }
    conf: dict[str, Any] = {
        "broker_url": settings.broker_url,
        "result_backend": settings.result_backend,
        "broker_transport_options": transport,
        "result_backend_transport_options": {
            "global_keyprefix": settings.key_prefix,
            "visibility_timeout": settings.visibility_seconds,
            # Twenty attempts at a Redis that does not answer take minutes, in which the scheduler would stand
            # still and be ended by its watchdog. Its next turn tries again; a question is asked again.
            "retry_policy": {"max_retries": 1},
        },
        "visibility_timeout": settings.visibility_seconds,  # the backend reads it here
        "redis_socket_timeout": SOCKET_SECONDS,
        "redis_socket_connect_timeout": CONNECT_SECONDS,
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": 10,
        "broker_connection_timeout": CONNECT_SECONDS,
        # A broker that is away is waited for, at the start too, for as long as it takes.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Nor is one that refuses a reason to end: full, or a replica that is not yet promoted.
        "broker_channel_error_retry": True,
        "worker_consumer": "semantik.consumer:Consumer",  # comes back within seconds
        # JSON only: a pickled message would be code.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "result_extended": True,
        "result_expires": RESULT_EXPIRES,
        "result_backend_always_retry": False,
        # A message is acknowledged when its task has ended, so that a lost child's comes back at once.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_prefetch_count_reduction": False,
        # A task goes on while Redis is away: its lease is the database's.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "task_track_started": True,
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        "task_publish_retry": False,
        "task_default_queue": INGEST,
        "task_create_missing_queues": True,
        "task_routes": {
            "semantik.tasks.process_embedding_job_task": {"queue": INGEST},
            "semantik.tasks.embed_shard_task": {"queue": EMBED},
            "semantik.tasks.embed_query_task": {"queue": QUERY},
            "semantik.tasks.test_task": {"queue": EMBED},
        },
        "imports": [
            "semantik.tasks",
            *(name.strip() for name in settings.imports.split(",") if name.strip()),
        ],
        # Seconds: a large model takes its time to load, and Celery would end the child that loads it.
        "worker_proc_alive_timeout": 600.0,
        "worker_redirect_stdouts": False,
        "worker_log_color": False,
        "timezone": "UTC",
    }
    for url, name in (
        (settings.broker_url, "broker_use_ssl"),
        (settings.result_backend, "redis_backend_use_ssl"),
    ):
        if url.startswith("rediss://"):
            conf[name] = {"ssl_cert_reqs": "required"} | (
                {"ssl_ca_certs": settings.redis_ca} if settings.redis_ca else {}
            )
    return conf


def _is_not_the_masked_url(record: logging.LogRecord) -> bool:
    """Drop kombu's word of insecure TLS, which each look at a worker's settings causes.

    To mask the URL's password Celery makes a connection of the URL alone and never opens it. Those that are
    opened have the options of `configuration`, so that a certificate is always verified.
    """
    return not record.getMessage().startswith("Secure redis scheme specified (rediss) with no ssl")


def make_app(settings: Settings) -> Celery:
    """Return the application for these settings."""
    application = Celery("semantik", set_as_current=True, events="semantik.events:Events")
    application.conf.update(configuration(settings))
    if settings.broker_url.startswith("rediss://"):
        logging.getLogger("kombu.connection").addFilter(_is_not_the_masked_url)
    return application


def _load() -> tuple[Settings, Celery]:
    loaded = load()
    # Celery prefers these variables to its settings; those have the passwords from the unit's credentials
    # in them.
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        os.environ.pop(name, None)
    application = make_app(loaded)
    if loaded.role:
        from semantik import worker

        worker.install(application, loaded)
    return loaded, application


try:
    settings, app = _load()
except SettingsError as error:
    if not os.environ.get("SEMANTIK_ROLE"):
        raise
    # `celery worker` would show its own usage and a traceback, and exit with a status that systemd takes for
    # a crash.
    configure()
    event(logging.getLogger(__name__), "cannot start", level=logging.CRITICAL, reason=error)
    sys.exit(EX_CONFIG)
